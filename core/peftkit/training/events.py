"""TensorBoard event files of a run, where the recipe asks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit.errors import PeftkitError

FIGURES = ("loss", "validation_loss", "lr", "grad_norm", "tokens_per_s", "memory")


def check_installed() -> None:
    """Raise a PeftkitError where the package that writes event files is missing."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise PeftkitError(
            "train.tensorboard is true, but the package tensorboard is not installed: "
            "install it with `pip install tensorboard`, or set train.tensorboard=false."
        ) from None


class Events:
    """Writes a run's records as TensorBoard scalars; records after `last_step` of an earlier sitting are hidden."""

    def __init__(self, folder: Path, last_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=last_step + 1 if last_step else None)

    def append(self, record: dict[str, Any]) -> None:
        """Write the figures of one step."""
        for name in FIGURES:
            if name in record:
                self._writer.add_scalar(name, record[name], record["step"])
        for name, value in record.get("scores", {}).items():
            self._writer.add_scalar(f"scores/{name}", value, record["step"])

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
