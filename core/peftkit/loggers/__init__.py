"""Where a run's figures go beside `log.jsonl`: a registry, each entry a frozen dataclass of options in its own file.

An entry `Mine(Logger, name="mine")` says what `train.log: [mine]` in a recipe does. It names the `package` that it
needs and the `extra` of peftkit that installs it, and `open(run)` begins a run there, or goes on with the one of an
earlier sitting, and returns a `Writer`. What a writer raises is told once and ends that logger, never the training.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from peftkit.errors import PeftkitError
from peftkit.options import Options
from peftkit.registry import Registry

LOGGERS: Registry[type[Logger]] = Registry("logger", "peftkit.loggers")


@dataclass(frozen=True)
class LoggedRun:
    """What a logger is told of a run when it begins or goes on."""

    folder: Path
    """The run folder."""
    recipe: Mapping[str, Any]
    """Every key of the recipe, as JSON can hold it."""
    step: int
    """Optimizer steps that an earlier sitting has done; records of later ones may be there and are written anew."""
    identity: str | None
    """What the writer of an earlier sitting called its run there; None where the logger has not seen it yet."""


class Writer(Protocol):
    """Takes the figures of one run."""

    identity: str | None
    """What finds this run again in a later sitting; None where the run folder alone does."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take figures of an optimizer step, which counts from 1; a step may come twice, with other figures."""
        ...

    def end(self, figures: Mapping[str, float]) -> None:
        """Take the figures of the whole run, which is finished; `close` follows."""
        ...

    def close(self) -> None:
        """Write what is left; the run may go on in another process."""
        ...


@dataclass(frozen=True, kw_only=True)
class Logger(Options, registry=LOGGERS):
    """The options of one logger as a recipe writes them, and what it opens."""

    package: ClassVar[str] = ""
    """The module that it imports."""
    extra: ClassVar[str] = ""
    """The extra of peftkit that installs it."""
    summary: ClassVar[str] = ""
    """One sentence."""

    def check(self) -> None:
        """Raise PeftkitError where its package is not installed."""
        try:
            self.module()
        except ImportError as error:
            raise PeftkitError(
                f"train.log: '{self.name}' needs the package {self.package}, which cannot be imported ({error}): "
                f"install it with `pip install 'peftkit[{self.extra}]'`, or leave it out."
            ) from None

    def module(self) -> Any:
        """Import the package; raises ImportError where it is not there."""
        return importlib.import_module(self.package)

    def open(self, run: LoggedRun) -> Writer:
        """Begin the run there, or go on with that of `run.identity`."""
        raise TypeError(f"the logger '{self.name}' does not say how a run is opened")
