"""Event files for TensorBoard, in `tensorboard/` in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.loggers import LoggedRun, Logger, Writer


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Logger, name="tensorboard"):
    """Scalars by step; a resumed run goes on in the same folder, and steps behind its checkpoint are hidden."""

    package: ClassVar[str] = "tensorboard"
    extra: ClassVar[str] = "tensorboard"
    summary: ClassVar[str] = "Event files in `tensorboard/` in the run folder, which `tensorboard --logdir runs` shows."

    def open(self, run: LoggedRun) -> Writer:
        from torch.utils.tensorboard import SummaryWriter

        purge = run.step + 1 if run.identity is not None else None
        return Events(SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge))


class Events(Writer):
    """Writes scalars."""

    identity = "tensorboard"
    """The folder in the run folder."""

    def __init__(self, writer: Any):
        self.writer = writer

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def end(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(f"run/{name}", value, 0)

    def close(self) -> None:
        self.writer.close()
