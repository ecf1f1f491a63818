"""From parameter groups to what takes the steps: one torch optimizer for each name, all behind one face."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.optim import DEFAULT, OPTIMIZERS


class Optimizers:
    """The optimizers that the groups of an adaptation ask for with `optimizer`, else for `default`, as one.

    A group also holds `params`, their `keys`, `lr`, `weight_decay`, and the options of its optimizer.
    """

    def __init__(
        self,
        groups: Sequence[Mapping[str, Any]],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        default: str = DEFAULT,
    ):
        named = _by_name(groups, default)
        self.kinds = [OPTIMIZERS[name] for name in named]
        self.parts = [
            kind(members, betas=betas, eps=eps) for kind, members in zip(self.kinds, named.values(), strict=True)
        ]
        self.keys = [[key for group in members for key in group["keys"]] for members in named.values()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers; an `lr` written into one counts from the next step."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Take one step with every optimizer."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with zeros."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def forget(self, group: Mapping[str, Any], share: float) -> None:
        """Set this share of each moment of a group's parameters to zero, the smallest first; all: drop the states.

        Raises PeftkitError for less than all of states that are no tensors like the parameters.
        """
        (part,) = [part for part in self.parts if any(own is group for own in part.param_groups)]
        for parameter in group["params"]:
            if share >= 1:
                part.state.pop(parameter, None)
                continue
            moments = [m for m in part.state[parameter].values() if isinstance(m, Tensor) and m.numel() > 1]
            if not all(m.shape == parameter.shape and m.is_floating_point() for m in moments):
                raise PeftkitError(
                    "only moments that are kept as they are can be pruned: set train.optimizer to adamw."
                )
            for moment in moments:
                cut = moment.abs().flatten().kthvalue(max(1, round(share * moment.numel()))).values
                moment.masked_fill_(moment.abs() <= cut, 0)

    def state(self) -> dict[str, Any]:
        """Return the states by `<key>/<state name>`: tensors in the optimizers' memory, and plain values."""
        return {
            f"{keys[index]}/{name}": value
            for part, keys in zip(self.parts, self.keys, strict=True)
            for index, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned; what is not the state of what is trained here is a PeftkitError."""
        places = {key: (part, index) for part, keys in enumerate(self.keys) for index, key in enumerate(keys)}
        states: list[dict[int, dict[str, Any]]] = [{} for _ in self.parts]
        for path, value in state.items():
            key, _, name = path.rpartition("/")
            if key not in places:
                raise PeftkitError(
                    f"the optimizer's state names {key}, which is not trained here: it was made for another model or "
                    "method."
                )
            part, index = places[key]
            states[part].setdefault(index, {})[name] = value
        for kind, part, keys, values in zip(self.kinds, self.parts, self.keys, states, strict=True):
            owners = [(group, parameter) for group in part.param_groups for parameter in group["params"]]
            for index, found in values.items():
                _check(keys[index], found, kind.state_shapes(*owners[index]))
            part.load_state_dict({"state": values, "param_groups": part.state_dict()["param_groups"]})


def _check(key: str, found: Mapping[str, Any], wanted: Mapping[str, Sequence[int]]) -> None:
    """Refuse states of a tensor that are not those which its optimizer keeps."""
    if found.keys() != wanted.keys():
        raise PeftkitError(
            f"the optimizer's state of {key} is {', '.join(sorted(found))}; allowed: {', '.join(sorted(wanted))}."
        )
    for name, shape in wanted.items():
        value = torch.as_tensor(found[name])
        if value.shape != torch.Size(shape):
            raise PeftkitError(
                f"the optimizer's state {key}/{name} has the shape {list(value.shape)}; allowed: {list(shape)}."
            )
        if not shape and not 0 <= value.item() < math.inf:
            raise PeftkitError(f"the optimizer's state {key}/{name} is {value.item()}; allowed: a count of steps.")


def state_bytes(
    groups: Sequence[Mapping[str, Any]], default: str = DEFAULT, *, device: torch.device | None = None
) -> int:
    """Count the bytes of the optimizers' states that the groups would need on `device`, without building any.

    None stands for the CPU, which holds the states of every optimizer that keeps them off the device.
    """
    named, device = _by_name(groups, default), device or torch.device("cpu")
    return sum(OPTIMIZERS[name].state_bytes(group, device) for name, members in named.items() for group in members)


def _by_name(groups: Sequence[Mapping[str, Any]], default: str) -> dict[str, list[dict[str, Any]]]:
    named: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        rest = {key: value for key, value in group.items() if key != "optimizer"}
        named.setdefault(group.get("optimizer", default), []).append(rest)
    return named
