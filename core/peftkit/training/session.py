"""A training run from its recipe to its folder: set up, train, log, checkpoint, save, sum up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.training import checkpoint, events, folder, plot, summary
from peftkit.training.log import Log
from peftkit.training.observer import Observer, Silent
from peftkit.training.signals import Deferred, Interrupted
from peftkit.training.summary import Summary

if TYPE_CHECKING:
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

    def __init__(self, recipe: Recipe, run: Path, observer: Observer, resume: bool):
        from peftkit.training.preparation import prepare

        self.recipe, self.run, self.observer, self.resume = recipe, run, observer, resume
        self.checkpoints = run / "checkpoints"
        self.prepared: Prepared = prepare(recipe, resumed=resume and bool(checkpoint.listed(self.checkpoints)))
        self.loop = self.prepared.loop
        self.recipe = folder.with_storage(recipe, self.prepared.loaded.storage)

    def go(self) -> Summary:
        """Train to the end; returns the summary that is written."""
        for notice in self.prepared.notices:
            self.observer.notice(notice)
        if self.resume:
            self._restore()
        files.write_text(self.run / "recipe.yaml", self.recipe.to_yaml())
        self.observer.start(self._info())
        log = Log(self.run / "log.jsonl", self.loop.step)
        writer = events.Events(self.run / "tensorboard", self.loop.step) if self.recipe.train.tensorboard else None
        try:
            with Deferred() as deferred:
                self._train(log, writer, deferred)
        finally:
            log.close()
            if writer is not None:
                writer.close()
        return self._finish(log)

    def _train(self, log: Log, writer: events.Events | None, deferred: Deferred) -> None:
        loop, section = self.loop, self.recipe.train
        earlier = log.records[-1]["elapsed_s"] if log.records else 0.0
        started = saved = time.monotonic()
        while loop.step < loop.steps:
            if deferred.received is not None:
                raise Interrupted(deferred.received, self._save(), loop.step)
            record = loop.run_step()
            record["elapsed_s"] = round(earlier + time.monotonic() - started, 3)
            self.observer.step(record)
            self._evaluate(record)
            log.append(record)
            if writer is not None:
                writer.append(record)
            overdue = section.save_every is None and time.monotonic() - saved > SAVE_SECONDS
            if overdue or (section.save_every and loop.step % section.save_every == 0):
                self._save()
                saved = time.monotonic()

    def _evaluate(self, record: dict[str, Any]) -> None:
        """Add the validation loss to the record of a step where it is due, the last step always."""
        every = self.recipe.train.evaluate_every
        due = self.loop.step == self.loop.steps or (every and self.loop.step % every == 0)
        if due and self.prepared.validation is not None:
            record["validation_loss"] = self.loop.evaluate(self.prepared.validation)
            self.observer.evaluated({"step": self.loop.step, "validation_loss": record["validation_loss"]})

    def _save(self) -> Path:
        parts, facts = self.loop.state()
        path = checkpoint.write(self.checkpoints, self.loop.step, parts, {**facts, **self._origin()})
        checkpoint.prune(self.checkpoints, self.recipe.train.keep_checkpoints)
        self.observer.saved(path)
        return path

    def _restore(self) -> None:
        """Load the newest checkpoint; without one the run begins again."""
        for place in (self.run, self.checkpoints):
            checkpoint.sweep(place)
        found = checkpoint.listed(self.checkpoints)
        if not found:
            self.observer.notice("no checkpoint had been written yet: the run begins again from the first step.")
            return
        parts, facts = checkpoint.read(found[-1])
        for key, what in (("data", "training data"), ("base", "base model")):
            if facts[key] != self._origin()[key]:
                raise PeftkitError(
                    f"{self.run} cannot be resumed: the {what} changed since its checkpoint {found[-1].name} was "
                    "written. Bring the earlier files back, or begin another run with --output."
                )
        if facts["versions"] != summary.versions():
            self.observer.notice(
                "library versions changed since the checkpoint: the last bits of the losses may differ."
            )
        from peftkit.models.quantize import forget_originals

        self.loop.load_state(parts, facts)
        forget_originals(self.prepared.loaded.model)

    def _origin(self) -> dict[str, Any]:
        """What a checkpoint's numbers depend on beside the recipe."""
        prepared = self.prepared
        return {"data": prepared.digest, "base": prepared.loaded.fingerprint, "versions": summary.versions()}

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

    def _finish(self, log: Log) -> Summary:
        """Write the adapter, the loss curve and, last of all, the summary that marks the run as finished."""
        from peftkit import adapt

        loaded, info = self.prepared.loaded, self._info()
        self.prepared.adaptation.finish()
        base = {"name": loaded.name, "fingerprint": loaded.fingerprint, "quantization": loaded.storage}
        adapt.save(self.prepared.adaptation, self.run / "adapter", base)
        title = f"{' + '.join(info['methods'])} on {info['dataset']}"
        plot.draw_loss(self.run / "loss.png", log.records, title)
        kept = ("model", "methods", "dataset", "examples", "dropped_examples", "trainable_parameters")
        result = Summary(
            **{key: info[key] for key in (*kept, "total_parameters", "device", "precision")},
            **summary.figures(log.records),
            versions=summary.versions(),
        )
        files.write_json(self.run / "summary.json", result.as_dict())
        self.observer.end(result.as_dict())
        return result
