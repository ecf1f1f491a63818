"""What methods say and do in training: groups of the optimizer, terms of the loss, and hooks around steps."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.adaptation.state import State
from peftkit.hooks import Phase


class Training(State):
    """What an adaptation does in training."""

    def groups(self, learning_rate: float | None, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: each method's own learning rate, and weight decay on what says that it decays.

        Vectors do not, nor what the adapters list in `undecayed`: the others are those that multiply hidden states.
        A method's rate is its option `learning_rate`, else the given one, else its own for the width of the model.
        """
        asked: list[dict[str, Any]] = []
        rate = learning_rate
        for position, (part, (rate, _)) in enumerate(zip(self.parts, self.rates(learning_rate), strict=True)):
            asked += part.method.groups(self.layout, self._parameters(f"{position}"), rate)
        asked += [{"params": self._parameters(name), "lr": learning_rate or rate} for name in self.modules]
        left = {f"{position}/{key}" for position, part in enumerate(self.parts) for key in part.undecayed()}
        pairs = [
            (f"{position}/{down}", f"{position}/{up}")
            for position, part in enumerate(self.parts)
            for down, up in part.factors()
        ]
        groups = []
        for group in asked:
            for decays, decay in ((True, weight_decay), (False, 0.0)):
                chosen = [(key, p) for key, p in group["params"] if (p.ndim > 1 and key not in left) == decays]
                if chosen:
                    keys = [key for key, _ in chosen]
                    named = {"params": [p for _, p in chosen], "keys": keys, "multiplies": decays}
                    own = [(down, up) for down, up in pairs if down in set(keys)]
                    groups.append({**group, **named, "pairs": own, "weight_decay": decay})
        return groups

    def rates(self, learning_rate: float | None) -> list[tuple[float, str]]:
        """Return the rate that each method is given, and where it comes from, `learning_rate` being the recipe's."""
        found = []
        for part in self.parts:
            own, width = part.method.learning_rate, self.layout.width
            if own is not None:
                found.append((own, f"the option learning_rate of {part.method.name}"))
            elif learning_rate is not None:
                found.append((learning_rate, "train.learning_rate"))
            else:
                searched = "" if part.method.rate_searched else ", taken over from methods like it"
                origin = f"the default of {part.method.name} for a width of {width}{searched}"
                found.append((part.method.rate(width), origin))
        return found

    def _parameters(self, prefix: str) -> list[tuple[str, nn.Parameter]]:
        return [(key, parameter) for key, parameter in self.parameters() if key.startswith(f"{prefix}/")]

    def finish(self) -> None:
        """Bring the adapters to the form that is saved: to be called once, after the last step."""
        for part in self.parts:
            part.method.finish(part.adapters)
            part.method = part.method.finished
        self.chosen = tuple(method.finished for method in self.chosen)

    def prepare(self, batches: Iterable[Any]) -> None:
        """Let each method look at the model and the batches of an epoch before a run's first step; not on resuming."""
        for part in self.parts:
            part.method.prepare(self.model, part.adapters, batches)

    def phase(self, key: str, step: int, steps: int) -> Phase:
        """Return the phase that a step is of for the parameter of this key; what is beside the parts has one."""
        position = key.partition("/")[0]
        return self.parts[int(position)].method.phase(step, steps) if position.isdecimal() else Phase(0, steps)

    def penalty(self) -> Tensor | None:
        """Return the sum of what methods add to the loss of a step, and adapters to that of a pass; None for nothing.

        Of passes that count with their losses (`aux_loss`) nothing is left.
        """
        terms = [*(part.method.penalty(part.adapters) for part in self.parts), self.aux_loss()]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def agreement(self) -> float:
        """Return the weight of the divergence between two passes that methods ask for, 0 where none does."""
        return sum(part.method.agreement() for part in self.parts)

    def aux_loss(self) -> Tensor | None:
        """Return the sum of what running adapters add to the loss of the pass that they saw; None where none does."""
        terms = [adapter.aux_loss(self.context) for adapter in self.adapters() if adapter.enabled]
        given = [term for term in terms if term is not None]
        return torch.stack(given).sum() if given else None

    def further(self) -> list[AbstractContextManager[None]]:
        """Return the contexts of the further passes that methods want of each micro-batch."""
        return [each for part in self.parts for each in part.method.further(part.adapters)]

    def after_backward(self, step: int, steps: int) -> None:
        """Let each method act on the gradients of a step."""
        for part in self.parts:
            part.method.after_backward(part.adapters, step, steps)

    def after_step(self, step: int, steps: int) -> None:
        """Let each method act after a step."""
        for part in self.parts:
            part.method.after_step(part.adapters, step, steps)

    def told(self) -> dict[str, Any]:
        """Return what methods tell of where their schedules stand."""
        return {name: value for part in self.parts for name, value in part.method.told(part.adapters).items()}
