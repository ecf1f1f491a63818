"""Runs of Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.loggers import LoggedRun, Logger, Writer


@dataclass(frozen=True, kw_only=True)
class WeightsAndBiases(Logger, name="wandb"):
    """A run there; without a login it is kept in the run folder, for `wandb sync`. `WANDB_MODE` decides otherwise."""

    package: ClassVar[str] = "wandb"
    extra: ClassVar[str] = "wandb"
    summary: ClassVar[str] = "A run of Weights & Biases; without a login it waits in the run folder for `wandb sync`."

    project: str = "peftkit"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team; null is that of the login."""
    group: str | None = None
    """What runs that belong together share."""
    tags: tuple[str, ...] = ()
    """Words by which runs are found."""

    def open(self, run: LoggedRun) -> Writer:
        wandb = self.module()
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.api.api_key:
            # It would ask for a login on the terminal, and wait.
            mode = "offline"
            note = "wandb: no login was found, so the run is kept in %s; `wandb sync` sends it."
            logging.getLogger("peftkit").warning(note, run.folder / "wandb")
        return Online(
            wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group,
                tags=list(self.tags) or None,
                name=run.folder.name,
                id=run.identity,
                resume="allow",
                reinit="create_new",
                dir=str(run.folder),
                config=dict(run.recipe),
                mode=mode,
                settings=wandb.Settings(console="off", silent=True),
            )
        )


class Online(Writer):
    """Sends figures to a run."""

    def __init__(self, run: Any):
        self.run, self.identity = run, str(run.id)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def end(self, figures: Mapping[str, float]) -> None:
        self.run.summary.update(dict(figures))

    def close(self) -> None:
        self.run.finish()
