"""The loggers of a run, behind its observer: what each is told, and what becomes of one that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftkit import files, schemas
from peftkit.errors import OutputLost, PeftkitError
from peftkit.loggers import LOGGERS, LoggedRun, Logger, Writer
from peftkit.recipe import Recipe
from peftkit.recipe.entries import entry
from peftkit.training.observer import Heeded, Observer

FILE = "loggers.json"
"""Beside the log: what finds the run of each logger again in a later sitting."""
FIGURES = ("loss", "lr", "grad_norm", "tokens_per_s", "memory")
"""What of a step's record is told; beside them `validation_loss`, and each score as `scores/NAME`."""
OF_A_RUN = ("trainable_parameters", "tokens", "tokens_per_second", "peak_memory_bytes", "wall_s")
"""What of a run's summary is told; beside them each loss as `losses/NAME`, and each score."""


def chosen(recipe: Recipe) -> list[Logger]:
    """Build the loggers that a recipe names."""
    return [LOGGERS[name].from_options(options) for name, options in map(entry, recipe.train.log)]


def check_loggers(recipe: Recipe) -> None:
    """Raise PeftkitError, before anything is read, where the package of a logger is not installed."""
    for logger in chosen(recipe):
        logger.check()


class Reports(Observer):
    """Passes every event on to an observer, and figures to the loggers of a recipe.

    A logger that raises anything is told of once and left off; the run goes on.
    """

    def __init__(self, observer: Heeded, recipe: Recipe, run: Path):
        self.observer, self.recipe, self.run = observer, recipe, run
        self.writers: dict[str, Writer] = {}

    @property
    def lost(self) -> OutputLost | None:
        """What became of the observer's output, where it takes nothing more."""
        return self.observer.lost

    def start(self, info: dict[str, Any]) -> None:
        self.observer.start(info)
        identities = self._identities()
        for logger in chosen(self.recipe):
            facts = self.recipe.model_dump(mode="json")
            logged = LoggedRun(self.run, facts, int(info["step"]), identities.get(logger.name))
            self._guarded(logger.name, lambda logger=logger, logged=logged: self._open(logger, logged))
        found = {name: writer.identity for name, writer in self.writers.items() if writer.identity is not None}
        if found:
            # What an absent logger was told of stays findable.
            files.write_json(self.run / FILE, {**identities, **found})

    def working(self, text: str) -> None:
        self.observer.working(text)

    def step(self, record: dict[str, Any]) -> None:
        self.observer.step(record)
        self._log(record)

    def evaluated(self, record: dict[str, Any]) -> None:
        self.observer.evaluated(record)
        self._log(record)

    def saved(self, path: Path) -> None:
        self.observer.saved(path)

    def notice(self, text: str) -> None:
        self.observer.notice(text)

    def end(self, summary: dict[str, Any]) -> None:
        figures = {key: summary[key] for key in OF_A_RUN if summary.get(key) is not None}
        losses = {f"losses/{key}": value for key, value in summary["losses"].items() if value is not None}
        whole = {**figures, **losses, **scores_of(summary)}
        for name, writer in list(self.writers.items()):
            self._guarded(name, lambda writer=writer: writer.end(whole))
        self.close()
        self.observer.end(summary)

    def close(self) -> None:
        """Have every logger write what is left; a second call does nothing."""
        for name, writer in list(self.writers.items()):
            self._guarded(name, writer.close)
        self.writers.clear()

    def _open(self, logger: Logger, logged: LoggedRun) -> None:
        self.writers[logger.name] = logger.open(logged)

    def _log(self, record: Mapping[str, Any]) -> None:
        figures = {key: record[key] for key in (*FIGURES, "validation_loss") if record.get(key) is not None}
        figures |= scores_of(record)
        for name, writer in list(self.writers.items()):
            self._guarded(name, lambda writer=writer: writer.log(int(record["step"]), figures))

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        """Do what a logger does; whatever it raises leaves it off, as its services and packages are not ours."""
        try:
            action()
        except Exception as error:
            writer = self.writers.pop(name, None)
            with suppress(Exception):
                if writer is not None:
                    writer.close()
            told = str(error).strip().partition("\n")[0] or type(error).__name__
            self.observer.notice(
                f"train.log: '{name}' failed and is left off for the rest of this sitting ({told}); the run goes on, "
                "and log.jsonl has everything."
            )

    def _identities(self) -> dict[str, str]:
        """Return what found the run of each logger in an earlier sitting; a damaged file is told of and passed over."""
        path = self.run / FILE
        try:
            return schemas.read(path, dict[str, str]) if path.is_file() else {}
        except PeftkitError as error:
            self.observer.notice(f"{error} The loggers begin new runs.")
            return {}


def scores_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of a record as figures."""
    return {f"scores/{name}": value for name, value in (record.get("scores") or {}).items()}
