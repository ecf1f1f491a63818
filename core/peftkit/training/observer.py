"""What a run tells while it goes on, to a terminal or to nobody."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from peftkit.errors import OutputLost


class Observer(Protocol):
    """Receives a run's events; every record is a plain dictionary that JSON can hold."""

    def start(self, info: dict[str, Any]) -> None:
        """The run is set up: steps, step (already done), examples, parameters, device, precision, names.

        `saved` tells about which parts, 0 to 1, of padded batches are `padding` that is left out, and of the tokens
        `shared` ones that are computed once. `largest` has the `tokens` of the largest micro-batch of the first
        epoch and the `step` that computes it; None where `train.memory` has tried it already.
        """

    def working(self, text: str) -> None:
        """What is done before the run is set up, and how far it is, where it takes longer than two seconds."""

    def step(self, record: dict[str, Any]) -> None:
        """An optimizer step is done: the record that goes to log.jsonl."""

    def evaluated(self, record: dict[str, Any]) -> None:
        """Something was measured: step, and validation_loss or scores or both."""

    def saved(self, path: Path) -> None:
        """A checkpoint folder was written."""

    def notice(self, text: str) -> None:
        """Something a person should know."""

    def end(self, summary: dict[str, Any]) -> None:
        """The run is finished: what summary.json holds."""


class Silent(Observer):
    """An observer that says nothing."""


class Heeded:
    """An observer whose lost output does not end what it watches: it is kept in `lost`, and nothing more is told."""

    def __init__(self, observer: Any):
        self._observer = observer
        self.lost: OutputLost | None = None

    def __getattr__(self, event: str) -> Callable[..., None]:
        return partial(self._tell, getattr(self._observer, event))

    def _tell(self, event: Callable[..., None], *told: Any) -> None:
        if self.lost is None:
            try:
                event(*told)
            except OutputLost as lost:
                self.lost = lost
            except OSError as error:
                self.lost = OutputLost("what is told of the run", error)
