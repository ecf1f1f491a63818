"""A training run from its recipe to its folder: set up, train, log, checkpoint, save, sum up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.training import checkpoint, events, folder, plot, scoring, summary
from peftkit.training.best import Best
from peftkit.training.log import Log
from peftkit.training.observer import Observer, Silent
from peftkit.training.parts import memory_parts
from peftkit.training.signals import Deferred, Interrupted
from peftkit.training.summary import Summary
from peftkit.versions import versions

if TYPE_CHECKING:
    from peftkit.assembly import Assembled
    from peftkit.recipe import Recipe
    from peftkit.training.preparation import Prepared

SAVE_SECONDS = 600.0
"""How often a checkpoint is written where the recipe does not say `train.save_every`."""


def train(recipe: Recipe, run: Path, *, resume: bool = False, observer: Observer | None = None) -> Summary:
    """Train as `recipe` says into the folder `run`, or continue there with `resume`.

    Raises PeftkitError for anything wrong in the recipe, the data or the folder, and Interrupted, after a checkpoint,
    on SIGINT or SIGTERM. A run that is finished is not trained again: its summary is returned.
    """
    observer = observer or Silent()
    if not resume:
        folder.check_new(run)
    else:
        recipe = folder.check_resumed(run, recipe)
        if (run / "summary.json").exists():
            observer.notice(f"the run in {run} is finished: there is nothing to resume.")
            return summary.read(run / "summary.json")
    if recipe.train.tensorboard:
        events.check_installed()
    return Session(recipe, run, observer, resume).go()


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
        from peftkit.training.preparation import prepare
        from peftkit.training.rate import Meter

        self.run, self.observer, self.resume = run, observer, resume
        self.checkpoints = run / "checkpoints"
        begun = resume and bool(checkpoint.listed(self.checkpoints))
        self.prepared: Prepared = prepare(recipe, resumed=begun, base=base, name=name)
        self.loop = self.prepared.loop
        self.loop.meter = Meter.of(self.loop)
        self.recipe = folder.with_storage(recipe, self.prepared.loaded.storage)
        wanted = recipe.train.keep_best
        self.best = None if wanted is None else Best(wanted, recipe.train.patience)

    def go(self) -> Summary:
        """Train to the end; returns the summary that is written."""
        self.open()
        try:
            with Deferred() as deferred:
                while not self.done:
                    if deferred.received is not None:
                        raise Interrupted(deferred.received, self.save(), self.loop.step)
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
        from peftkit.training.counts import largest_batch, saved_parts
        from peftkit.training.replays import Replays

        for notice in self.prepared.notices:
            self.observer.notice(notice)
        self.loop.ladder.tell = self.observer.notice
        self.loop.replays = Replays.of(self.loop, self.observer.notice)
        if not (self.resume and self._restore()):
            self.loop.ladder.begin(self.loop)
        if self.recipe.train.compile:
            self._compile()
        files.write_text(self.run / "recipe.yaml", self.recipe.to_yaml())
        saved = saved_parts(self.loop.batches, self.loop.engine, self.loop.pad_id)
        # With train.memory the largest micro-batch has been tried before the first step.
        largest = largest_batch(self.loop) if self.recipe.train.memory is None else None
        self.observer.start({**self._info(), "saved": saved, "largest": largest})
        self.log = Log(self.run / "log.jsonl", self.loop.step)
        self.writer = events.Events(self.run / "tensorboard", self.loop.step) if self.recipe.train.tensorboard else None
        self.earlier = self.log.records[-1]["elapsed_s"] if self.log.records else 0.0
        self.started = self.saved = time.monotonic()

    def _compile(self) -> None:
        from peftkit.training.compiled import CompiledBlocks

        self.loop.compiled = CompiledBlocks(self.loop.model, self.observer.notice)
        if self.recipe.train.compile == "auto":
            self.loop.compiled.settle(self.loop, self.loop.settled)
        else:
            self.loop.compiled.begin(self.loop)

    def close(self) -> None:
        """Close the log."""
        if self.loop.compiled is not None:
            self.loop.compiled.stop()
        self.log.close()
        if self.writer is not None:
            self.writer.close()

    def take(self, record: dict[str, Any]) -> None:
        """Take the record of a step: measure what is due, log it, and write a checkpoint where one is due."""
        loop, section = self.loop, self.recipe.train
        record["elapsed_s"] = round(self.earlier + time.monotonic() - self.started, 3)
        self.observer.step(record)
        self._evaluate(record)
        self.log.append(record)
        if self.writer is not None:
            self.writer.append(record)
        overdue = section.save_every is None and time.monotonic() - self.saved > SAVE_SECONDS
        if overdue or (section.save_every and loop.step % section.save_every == 0):
            self.save()
            self.saved = time.monotonic()

    def _evaluate(self, record: dict[str, Any]) -> None:
        """Add the validation loss and the scores to the record of a step where they are due, the last step always."""
        section, measured = self.recipe.train, {}
        if self._due(section.evaluate_every) and self.prepared.validation is not None:
            measured["validation_loss"] = self.loop.evaluate(self.prepared.validation)
        if self._due(section.score_every) and self.prepared.scored is not None:
            measured["scores"] = scoring.measure(self.prepared, self.recipe)
        if measured:
            record |= measured
            self.observer.evaluated({"step": self.loop.step, **measured})
        if self.best is not None:
            self.best.see(record, self.prepared.adaptation.state)

    def _due(self, every: int | None) -> bool:
        return self.loop.step == self.loop.steps or bool(every and self.loop.step % every == 0)

    def save(self) -> Path:
        """Write a checkpoint of the step that was done last; returns its folder."""
        parts, facts = self.loop.state()
        if self.best is not None:
            parts, facts = {**parts, "best": self.best.tensors}, {**facts, "best": self.best.facts()}
        path = checkpoint.write(self.checkpoints, self.loop.step, parts, {**facts, **self._origin()})
        checkpoint.prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.observer.saved(path)
        return path

    def _restore(self) -> bool:
        """Load the newest checkpoint; returns False without one, when the run begins again."""
        for place in (self.run, self.checkpoints):
            checkpoint.sweep(place)
        found = checkpoint.listed(self.checkpoints)
        if not found:
            self.observer.notice("no checkpoint had been written yet: the run begins again from the first step.")
            return False
        parts, facts = checkpoint.read(found[-1])
        for key, what in (("data", "training data"), ("base", "base model")):
            if facts[key] != self._origin()[key]:
                raise PeftkitError(
                    f"{self.run} cannot be resumed: the {what} changed since its checkpoint {found[-1].name} was "
                    "written. Bring the earlier files back, or begin another run with --output."
                )
        if facts["versions"] != versions():
            self.observer.notice(
                "library versions changed since the checkpoint: the last bits of the losses may differ."
            )
        from peftkit.models.quantize import forget_originals

        self.loop.load_state(parts, facts)
        if self.best is not None:
            self.best.load(facts["best"], parts["best"])
        forget_originals(self.prepared.loaded.model)
        return True

    def _origin(self) -> dict[str, Any]:
        """What a checkpoint's numbers depend on beside the recipe."""
        prepared = self.prepared
        return {"data": prepared.digest, "base": prepared.loaded.fingerprint, "versions": versions()}

    def _info(self) -> dict[str, Any]:
        prepared, loop = self.prepared, self.loop
        return {
            "run": str(self.run),
            "model": prepared.loaded.name,
            "methods": [method.name for method in prepared.adaptation.chosen],
            "dataset": prepared.dataset,
            "examples": len(set(prepared.encoded.sources)),
            "dropped_examples": prepared.encoded.dropped,
            "trainable_parameters": prepared.adaptation.trainable,
            "total_parameters": prepared.adaptation.total,
            "step": loop.step,
            "steps": loop.steps,
            "device": loop.device.type,
            "precision": loop.precision,
        }

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
            return {**measured, "validation_loss": self.loop.evaluate(self.prepared.validation)}
        return measured

    def finish(self) -> Summary:
        """Write the adapter, the loss curve and, last of all, the summary that marks the run as finished."""
        from peftkit.adaptation import save_adapter

        loaded, info = self.prepared.loaded, self._info()
        log = self.log
        kept = self._keep(log.records)
        self.loop.engine.release()
        self.prepared.adaptation.finish()
        base = {"name": loaded.name, "fingerprint": loaded.fingerprint, "quantization": loaded.storage}
        save_adapter(self.prepared.adaptation, self.run / "adapter", base)
        title = f"{' + '.join(info['methods'])} on {info['dataset']}"
        plot.draw_loss(self.run / "loss.png", log.records, title)
        keys = ("model", "methods", "dataset", "examples", "dropped_examples", "trainable_parameters")
        figures = summary.figures(log.records)
        figures["memory_parts"] = memory_parts(self.loop, figures["peak_memory_bytes"])
        figures["losses"]["validation"] = kept.get("validation_loss", figures["losses"]["validation"])
        result = Summary(
            **{key: info[key] for key in (*keys, "total_parameters", "device", "precision")},
            **figures,
            versions=versions(),
            scores=kept.get("scores"),
            best=None if self.best is None else self.best.told(),
            stopped_early=self.loop.step < self.loop.steps,
            rung=None if self.recipe.train.memory is None else str(self.loop.ladder.rung),
        )
        files.write_json(self.run / "summary.json", result.as_dict())
        self.observer.end(result.as_dict())
        return result
