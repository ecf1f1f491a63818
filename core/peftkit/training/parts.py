"""Whose the memory of a run is, as far as sizes tell."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from peftkit.layout import own_parameters
from peftkit.training.loop import Loop


def memory_parts(loop: Loop, peak: int) -> dict[str, int]:
    """Return the bytes of a run's parts on its device, which add up to its `peak`.

    `weights` are the model's own, packed or dense, its buffers among them; `adapter` what was attached beside them;
    `gradients` those of all that is trained, the model's own weights included; `optimizer` its states on the device.
    `rest` is the remainder of the peak: activations and what is held for a moment, and on a CPU Python and the
    libraries.
    """
    model = loop.passes.plain.engine.model
    own = [parameter for _, parameter in own_parameters(model)]
    own += [buffer for name, buffer in model.named_buffers() if ".seated." not in f".{name}"]
    everything = list(loop.adaptation.state().values())
    everything += [tensor for module in loop.adaptation.added() for tensor in module.parameters()]
    weights = _bytes(own)
    states = [value for value in loop.optimizer.state().values() if isinstance(value, Tensor)]
    parts = {
        "weights": weights,
        "adapter": _bytes([*own, *everything]) - weights,
        "gradients": _bytes(loop.parameters) if loop.strategy.needs().backward else 0,
        "optimizer": _bytes(state for state in states if state.device.type == loop.device.type),
    }
    return {**parts, "rest": max(0, peak - sum(parts.values()))}


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Add up the sizes of tensors; those that share memory count once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
