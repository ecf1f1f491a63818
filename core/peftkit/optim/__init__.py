"""Optimizers by name: each entry is a kind of torch optimizer over an adaptation's parameter groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from peftkit.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer


class Kind(Protocol):
    """What an entry is: a class of torch optimizers that tells the sizes of its states beforehand.

    A group holds `params`, `keys`, `lr`, `weight_decay` and whatever options this optimizer has of its own. It may say
    whether its tensors multiply hidden states (`multiplies`, by default True), and list the keys of factors A
    [rank, in], B [out, rank] of which an adapter is the product (`pairs`, with those whose A is in the group).
    """

    def __call__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float) -> Optimizer:
        """Build the optimizer over `groups`."""
        ...

    def state_bytes(self, group: Mapping[str, Any], device: torch.device) -> int:
        """Count the bytes on `device`, where the model is, of the states of a group's tensors; no counters of steps."""
        ...

    def state_shapes(self, group: Mapping[str, Any], parameter: Tensor) -> Mapping[str, Sequence[int]]:
        """Return the shapes of a tensor's states after its first step, by name; a counter of steps is `()`."""
        ...


OPTIMIZERS: Registry[Kind] = Registry("optimizer", "peftkit.optim")
DEFAULT = "adamw"
"""The optimizer of a group that names none."""
