"""A causal model taken apart into its hidden states and the logits that it makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn


class Head:
    """The head of `model`, run apart from its body by passing one of them by; the model's own code does the rest.

    Scaled or capped logits come out as the model makes them, and an adapted, packed or tied head is what it is.
    """

    def __init__(self, model: nn.Module):
        self.model = cast(Any, model)
        self.layer: nn.Module | None = self.model.get_output_embeddings()
        bodies = dict.fromkeys((self.model.base_model, self.model.get_decoder()))
        self.bodies = [body for body in bodies if body is not model] or [model]
        self.output: Any = None
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._bare: bool | None = None
        self._trained: list[Tensor] | None = None

    def hidden(self, **inputs: Tensor) -> Tensor:
        """Run the body and return the last hidden states [B, T, width]."""
        self.output = self.bodies[0](**inputs, use_cache=False)
        return self.output.last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [P, V] of hidden states [P, width], once `hidden` has run."""
        output = copy.copy(self.output)
        output.last_hidden_state = hidden.unsqueeze(0)
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _passed(self.bodies, output):
            return self.model(input_ids=ids, use_cache=False).logits.squeeze(0)

    def scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory of this shape that every call uses: large memory takes long to be given out."""
        size, device = math.prod(shape), self.output.last_hidden_state.device
        kept = self._kept.get((name, dtype))
        if kept is None or len(kept) < size or kept.device != device:
            kept = self._kept[name, dtype] = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(*shape)

    def follow(self, other: Head) -> None:
        """Go on from the body's run of another head of the same model, in its scratch memory."""
        self.output, self._kept = other.output, other._kept

    def release_memory(self) -> None:
        """Give back what `scratch` keeps."""
        self._kept.clear()

    def plain(self, hidden: Tensor) -> nn.Linear | None:
        """Return the output layer if it is frozen and dense, and the logits are its product with nothing after it."""
        if self._bare is None:
            self._bare = type(self.layer) is nn.Linear and not any(p.requires_grad for p in self.layer.parameters())
            self._bare = self._bare and self._passes_on(hidden)
        return cast(nn.Linear, self.layer) if self._bare else None

    def trained(self, hidden: Tensor) -> list[Tensor]:
        """Return the parameters that the logits depend on and that are trained, read once from the graph of a few."""
        if self._trained is None:
            with torch.enable_grad():
                self._trained = _leaves(self.logits(hidden[:1].detach()))
        return self._trained

    def _passes_on(self, hidden: Tensor) -> bool:
        """Say whether what the output layer returns is what the model returns, the very tensor."""
        made: list[Tensor] = []
        assert self.layer is not None
        hook = self.layer.register_forward_hook(lambda module, args, output: made.append(cast(Tensor, output)))
        with torch.no_grad():
            self.output.last_hidden_state, kept = hidden[None, :1], self.output.last_hidden_state
            with _passed(self.bodies, self.output):
                logits = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=hidden.device)).logits
            self.output.last_hidden_state = kept
        hook.remove()
        return len(made) == 1 and logits is made[0]


def _leaves(tensor: Tensor) -> list[Tensor]:
    """Return the leaves that the graph of `tensor` ends in."""
    leaves: dict[int, Tensor] = {}
    seen: set[Any] = set()
    todo = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        todo += [parent for parent, _ in node.next_functions]
    return list(leaves.values())


@contextmanager
def _passed(bodies: list[Any], output: Any) -> Iterator[None]:
    """Have the bodies return `output` without running."""
    for body in bodies:
        body.__dict__["forward"] = lambda *args, **kwargs: output
    try:
        yield
    finally:
        for body in bodies:
            del body.__dict__["forward"]
