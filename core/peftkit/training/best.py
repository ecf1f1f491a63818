"""The best adapter of a run so far, by a figure that is measured now and then, and when to stop waiting for better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from peftkit.errors import PeftkitError

VALIDATION = "validation_loss"
LOWER = "-"
"""In front of a score's name: lower is better."""


class Best:
    """Keeps a copy of the adapter, in the host's memory, of the step with the best figure; the first of equals."""

    def __init__(self, wanted: str, patience: int | None = None):
        """`wanted` is `validation_loss`, or a score's name, with `-` in front where lower is better."""
        self.metric = wanted.removeprefix(LOWER)
        self.lower = wanted.startswith(LOWER) or self.metric == VALIDATION
        self.patience = patience
        self.step = 0
        self.value: float | None = None
        self.waited = 0
        """Measurements since the best one."""
        self.tensors: dict[str, Tensor] = {}

    @property
    def exhausted(self) -> bool:
        """Whether `patience` measurements in a row were no better."""
        return self.patience is not None and self.waited >= self.patience

    def see(self, record: Mapping[str, Any], state: Callable[[], Mapping[str, Tensor]]) -> bool:
        """Take the record of a step; returns whether its figure is the best so far, whose `state` is then kept.

        A record without the figure changes nothing. Raises PeftkitError where scores were measured and lack it.
        """
        scores = record.get("scores", {})
        if self.metric != VALIDATION and scores and self.metric not in scores:
            raise PeftkitError(
                f"train.keep_best: {self.metric} could not be computed at step {record['step']}; the scores here are "
                f"{', '.join(scores)}."
            )
        value = record.get(VALIDATION) if self.metric == VALIDATION else scores.get(self.metric)
        if value is None:
            return False
        if self.value is not None and not (value < self.value if self.lower else value > self.value):
            self.waited += 1
            return False
        self.step, self.value, self.waited = record["step"], value, 0
        # Copies: on the CPU the state is the model's own memory, which the next step changes.
        self.tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in state().items()}
        return True

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it beside the tensors."""
        return {"step": self.step, "value": self.value, "waited": self.waited}

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint held; PeftkitError where it lacks the tensors of the adapter that was kept."""
        if facts["step"] and not tensors:
            raise PeftkitError(f"the tensors of the best adapter, of step {facts['step']}, are missing.")
        self.step, self.value, self.waited = facts["step"], facts["value"], facts["waited"]
        self.tensors = dict(tensors)

    def as_dict(self) -> dict[str, Any]:
        """Return what the run's summary says of it."""
        return {"metric": self.metric, "value": self.value, "step": self.step}
