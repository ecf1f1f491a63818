"""Runs of Trackio, kept on this machine or in a Space of the Hugging Face hub."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from peftkit.loggers import LoggedRun, Logger, Writer


@dataclass(frozen=True, kw_only=True)
class Trackio(Logger, name="trackio"):
    """A run there, which `trackio show` draws; it is known by its name, so that a new one gets letters of its own."""

    package: ClassVar[str] = "trackio"
    extra: ClassVar[str] = "trackio"
    summary: ClassVar[str] = "A run of Trackio on this machine, which `trackio show` draws, or in a Space of the hub."

    project: str = "peftkit"
    """The project that the run belongs to."""
    space_id: str | None = None
    """A Space of the hub, as owner/name, that keeps and shows it; null keeps it on this machine."""

    def open(self, run: LoggedRun) -> Writer:
        name = run.identity or f"{run.folder.name}-{secrets.token_hex(3)}"
        given = {"project": self.project, "space_id": self.space_id, "config": dict(run.recipe), "embed": False}
        begin = partial(self.module().init, name=name, resume="allow", **given)
        # In a context of its own it knows of no other run of this process, as of a sweep, which it would end.
        return Local(Context().run(begin), name)


class Local(Writer):
    """Adds figures to a run."""

    def __init__(self, run: Any, name: str):
        self.run, self.identity = run, name

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, figures: Mapping[str, float]) -> None:
        self.run.log({f"run/{name}": value for name, value in figures.items()})

    def close(self) -> None:
        self.run.finish()
