"""A training run from its recipe to its folder: set up, train, log, checkpoint, save, sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit import files, lock, plot
from peftkit.adaptation import OBJECTIVE, save_adapter
from peftkit.assembly import Assembled
from peftkit.data.batches import Batches
from peftkit.engine.counts import largest_batch, saved_parts
from peftkit.engine.passes import OutOfMemory
from peftkit.engine.retrying import EARLIER, PLAN
from peftkit.errors import PeftkitError
from peftkit.models import trust
from peftkit.models.quantize import forget_originals
from peftkit.recipe import BASE, Recipe, on_own_base
from peftkit.training import checkpoint, folder, log, origin, scoring, summary
from peftkit.training.best import Best
from peftkit.training.log import Log
from peftkit.training.observer import Heeded, Observer, Silent
from peftkit.training.parts import memory_parts
from peftkit.training.preparation import Prepared, prepare
from peftkit.training.reports import Reports, check_loggers
from peftkit.training.signals import Deferred, Interrupted
from peftkit.training.summary import Summary
from peftkit.versions import versions

SAVE_SECONDS = 600.0
"""How often a checkpoint is written where the recipe does not say `train.save_every`."""


def train(recipe: Recipe, run: Path, *, resume: bool = False, observer: Observer | None = None) -> Summary:
    """Train as `recipe` says into the folder `run`, or continue there with `resume`.

    Raises PeftkitError for anything wrong in the recipe, the data or the folder, and Interrupted, after a checkpoint,
    on SIGINT, SIGTERM or SIGHUP and where the observer's output is lost. A run that is finished is not trained once
    more: its summary is returned.
    """
    observer = observer or Silent()
    _, finished = folder.check(run, recipe, resume)
    if not finished:
        with lock.held(run, observer.notice) as holding:
            recipe, finished = folder.check(run, recipe, resume)  # another process may have had it until now
            if not finished:
                check_loggers(recipe)
                session = Session(recipe, run, observer, resume)
                holding.check()
                return session.go()
    observer.notice(f"the run in {run} is finished: there is nothing to resume.")
    return summary.read(run / "summary.json")


class Session:
    """One sitting of a run: from its first step, or its newest checkpoint, to its end or an interruption."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        observer: Observer,
        resume: bool,
        base: Assembled | None = None,
        name: str = "default",
    ):
        self.run, self.observer, self.resume = run, Reports(Heeded(observer), recipe, run), resume
        self.checkpoints = run / "checkpoints"
        # A recipe that is trained is its reader's own, and says that the model's code may be run.
        trust.remember(recipe.model)
        resumed = resume and bool(checkpoint.listed(self.checkpoints))
        begun = folder.as_begun(recipe, self.checkpoints) if resumed else recipe
        begun = on_own_base(begun, run) if resumed else begun
        self.prepared: Prepared = prepare(
            begun,
            keep=[run / BASE],
            resumed=resumed,
            base=base,
            name=name,
            notice=self.observer.notice,
            working=self.observer.working,
        )
        self.loop = self.prepared.loop
        self.recipe = folder.with_storage(recipe, self.prepared.loaded.storage)
        wanted = recipe.train.keep_best
        self.best = None if wanted is None else Best(wanted, recipe.train.patience)

    def go(self) -> Summary:
        """Train to the end; returns the summary that is written."""
        self.open()
        try:
            with Deferred() as deferred:
                while not self.done:
                    cause = deferred.received or self.observer.lost
                    # Before its first step a run has nothing that a checkpoint could hold.
                    if cause is not None and self.loop.step:
                        raise Interrupted(cause, self.save(), self.loop.step)
                    self.take(self.loop.run_step())
        finally:
            self.close()
        return self.finish()

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.loop.step >= self.loop.steps or bool(self.best and self.best.exhausted)

    def open(self) -> None:
        """Tell what there is to tell, restore the run, and open its log."""
        for notice in self.prepared.notices:
            self.observer.notice(notice)
        for place in (self.run, self.checkpoints):
            checkpoint.sweep(place)
        records = self._restore() if self.resume else []
        checkpoint.prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        try:
            self.loop.passes.open()
        except OutOfMemory as error:
            raise error.at(self.loop.step + 1) from None
        files.write_text(self.run / "recipe.yaml", self.recipe.to_yaml())
        self.observer.start({**self._info(), **self._outlook()})
        self.log = Log(self.run / checkpoint.LOG, records)
        self.earlier = self.log.records[-1]["elapsed_s"] if self.log.records else 0.0
        self.started = self.saved = time.monotonic()

    def _outlook(self) -> dict[str, Any]:
        """Say what packing saves, and which micro-batch is the largest, as far as `train.memory` has not tried it."""
        loop, section, batches = self.loop, self.recipe.train, self.prepared.batches
        engine = loop.passes.plain.engine
        saved = saved_parts(batches, engine, loop.pad_id)
        if section.memory is not None:
            return {"saved": saved, "largest": None}
        return {
            "saved": saved,
            "largest": largest_batch(batches, engine, loop.pad_id, section.accumulation, loop.steps),
        }

    def close(self) -> None:
        """Let go of what is held from step to step, and close the log; loggers of a run that is done hear its end."""
        self.loop.passes.close()
        self.log.close()
        if not self.done:
            self.observer.close()

    def take(self, record: dict[str, Any]) -> None:
        """Take the record of a step: measure what is due, log it, and write a checkpoint where one is due."""
        loop, section = self.loop, self.recipe.train
        record["elapsed_s"] = round(self.earlier + time.monotonic() - self.started, 3)
        self.observer.step(record)
        self._evaluate(record)
        self.log.append(record)
        overdue = section.save_every is None and time.monotonic() - self.saved > SAVE_SECONDS
        if overdue or (section.save_every and loop.step % section.save_every == 0):
            self.save()
            self.saved = time.monotonic()

    def _evaluate(self, record: dict[str, Any]) -> None:
        """Add the validation loss and the scores to the record of a step where they are due, the last step always."""
        section, measured = self.recipe.train, {}
        if self._due(section.evaluate_every) and self.prepared.validation is not None:
            measured |= self._validate(self.prepared.validation)
        if self._due(section.score_every) and self.prepared.scored is not None:
            measured["scores"] = {**measured.get("scores", {}), **self._score(self.prepared.scored)}
        if measured:
            record |= measured
            self.observer.evaluated({"step": self.loop.step, **measured})
        if self.best is not None:
            self.best.see(record, self.prepared.adaptation.state)

    def _validate(self, batches: Batches) -> dict[str, Any]:
        measured = self.loop.evaluate(batches)
        return {"validation_loss": measured.loss, **({"scores": measured.scores} if measured.scores else {})}

    def _score(self, chosen: scoring.Slice) -> dict[str, float]:
        prepared = self.prepared
        tokenizer = prepared.loaded.tokenizer
        return scoring.measure(chosen, self.loop.passes.plain, tokenizer, prepared.template, self.recipe)

    def _due(self, every: int | None) -> bool:
        return self.loop.step == self.loop.steps or bool(every and self.loop.step % every == 0)

    def save(self) -> Path:
        """Write a checkpoint of the step that was done last; returns its folder."""
        parts, facts = self.loop.state()
        if self.best is not None:
            parts, facts = {**parts, "best": self.best.tensors}, {**facts, "best": self.best.facts()}
        facts |= origin.origin(self.prepared, self.recipe)
        facts["precision"] = self.loop.passes.plain.precision
        # The log is on the disk before the checkpoint that goes on from it.
        path = checkpoint.write(self.checkpoints, self.loop.step, parts, facts, self.log.content())
        checkpoint.prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.observer.saved(path)
        return path

    def _restore(self) -> list[dict[str, Any]]:
        """Load the newest checkpoint, without one the run begins again; returns the records of the steps before it."""
        written = checkpoint.listed(self.checkpoints)
        if not written:
            self.observer.notice("no checkpoint had been written yet: the run begins again from the first step.")
            return []
        newest, path = written[-1], self.run / checkpoint.LOG
        parts, facts = checkpoint.read(newest)
        origin.check(newest, facts, self.prepared, self.recipe)
        try:
            place = newest / checkpoint.LOG if "log" in facts else path
            records = log.kept(place, facts["step"], log.WholeStepRecord)
        except PeftkitError as error:
            raise PeftkitError(f"{error} {checkpoint.advice(newest) if 'log' in facts else ''}".rstrip()) from None
        if "log" in facts and not log.begins(path, newest / checkpoint.LOG):
            self.observer.notice(
                f"{path} was removed or changed after it was written: its {len(records)} records up to the checkpoint "
                f"{newest.name} are written again, as they stand there."
            )
        if facts["versions"] != versions():
            self.observer.notice(
                "library versions changed since the checkpoint: the last bits of the losses may differ."
            )
        try:
            self.loop.load_state(parts, facts)
            if self.best is not None:
                self.best.load(facts["best"], parts.get("best", {}))
        except PeftkitError as error:
            raise PeftkitError(f"{newest}: {error} {checkpoint.advice(newest)}") from None
        forget_originals(self.prepared.loaded.module)
        return records

    def _info(self) -> dict[str, Any]:
        prepared, loop = self.prepared, self.loop
        return {
            "run": str(self.run),
            "model": prepared.loaded.name,
            "methods": [method.name for method in prepared.adaptation.chosen],
            "dataset": prepared.dataset,
            "examples": prepared.encoded.examples,
            "dropped_examples": prepared.encoded.dropped,
            "trainable_parameters": prepared.adaptation.trainable,
            "total_parameters": prepared.adaptation.total,
            "step": loop.step,
            "steps": loop.steps,
            "device": loop.device.type,
            "precision": loop.passes.plain.precision,
        }

    def _objective(self) -> dict[str, Any] | None:
        """Return the name and the options of the objective where its module is saved with the adapter."""
        objective = self.loop.passes.plain.objective
        saved = OBJECTIVE in self.prepared.adaptation.modules
        return {"name": objective.name, "options": objective.options()} if saved else None

    def _keep(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Bring the best adapter back where one is kept; returns what was measured of the adapter that is saved."""
        best, last = self.best, records[-1]
        if best is None or best.step == last["step"]:
            return last
        self.prepared.adaptation.load_state(best.tensors)
        early = f"stopped early after step {last['step']}: " if self.loop.step < self.loop.steps else ""
        self.observer.notice(f"{early}the adapter of step {best.step} is kept, {best.metric} {best.value:.4f}")
        measured = next(record for record in records if record["step"] == best.step)
        if "validation_loss" not in measured and self.prepared.validation is not None:
            return {**measured, **self._validate(self.prepared.validation)}
        return measured

    def finish(self) -> Summary:
        """Write the adapter, the loss curve and, last of all, the summary that marks the run as finished."""
        try:
            return self._finish()
        finally:
            self.observer.close()

    def _finish(self) -> Summary:
        loaded, info = self.prepared.loaded, self._info()
        self.log.content()
        records = self.log.records
        kept = self._keep(records)
        self.loop.passes.close()
        self.prepared.adaptation.finish()
        save_adapter(self.prepared.adaptation, self.run / "adapter", loaded.description, objective=self._objective())
        title = f"{' + '.join(info['methods'])} on {info['dataset']}"
        plot.draw_loss(self.run / "loss.png", records, title)
        keys = ("model", "methods", "dataset", "examples", "dropped_examples", "trainable_parameters")
        figures = summary.figures(records)
        figures["memory_parts"] = memory_parts(self.loop, figures["peak_memory_bytes"])
        figures["losses"]["validation"] = kept.get("validation_loss", figures["losses"]["validation"])
        result = Summary(
            **{key: info[key] for key in (*keys, "total_parameters", "device", "precision")},
            **figures,
            versions=versions(),
            scores=kept.get("scores"),
            best=None if self.best is None else self.best.as_dict(),
            stopped_early=self.loop.step < self.loop.steps,
            memory_plan=records[-1].get(PLAN, records[-1].get(EARLIER)),
        )
        self.log.content()
        folder.check_written(self.run)
        files.write_json(self.run / "summary.json", result.as_dict())
        folder.check_written(self.run, *folder.WRITTEN, "summary.json")
        self.observer.end(result.as_dict())
        return result
