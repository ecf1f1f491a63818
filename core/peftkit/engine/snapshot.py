"""The state that a pass leaves traces in: what draws random numbers, and gradients; taken before, put back after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

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
    if device.type != "cpu":
        random[device.type] = _generator(device).get_rng_state(device)
    return random


def set_random_state(random: Mapping[str, Tensor], device: torch.device) -> None:
    """Draw on from what `random_state` returned; PeftkitError for what is no state of a generator."""
    try:
        torch.set_rng_state(random["cpu"])
        if device.type != "cpu" and device.type in random:
            _generator(device).set_rng_state(random[device.type], device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise PeftkitError(f"the state of random numbers is not one of a generator ({error}).") from None


def _generator(device: torch.device) -> Any:
    """Return the module of a GPU's random numbers; Apple's knows one device, and takes no other."""
    module = getattr(torch, device.type)
    if device.type != "mps":
        return module
    return SimpleNamespace(
        get_rng_state=lambda _: module.get_rng_state(), set_rng_state=lambda state, _: module.set_rng_state(state)
    )
