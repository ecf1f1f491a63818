"""The state that a pass leaves traces in: what draws random numbers, and gradients; taken before, put back after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError


class Snapshot:
    """The random state of the host and of `device`, and the gradients of `parameters`, at one moment."""

    def __init__(self, device: torch.device, parameters: Sequence[nn.Parameter]):
        self.device, self.parameters = device, parameters
        self.random = random_state(device)
        self.gradients = [None if p.grad is None else p.grad.clone() for p in parameters]

    def restore(self) -> None:
        """Put everything back as it was; once."""
        set_random_state(self.random, self.device)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


@contextmanager
def snapshot(device: torch.device, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Leave no trace of the passes that run inside."""
    before = Snapshot(device, parameters)
    try:
        yield
    finally:
        before.restore()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of what draws random numbers, by kind of device."""
    random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return random


def set_random_state(random: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw on from what `random_state` returned; PeftkitError for what is no state of a generator."""
    try:
        torch.set_rng_state(random["cpu"])
        if device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise PeftkitError(f"the state of random numbers is not one of a generator ({error}).") from None
