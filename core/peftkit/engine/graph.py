"""What the graph of a tensor ends in."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def leaves(tensor: Tensor) -> list[Tensor]:
    """Return the leaves that the graph of `tensor` ends in: what its gradient would be accumulated in."""
    found: dict[int, Tensor] = {}
    seen: set[Any] = set()
    todo = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        todo += [parent for parent, _ in node.next_functions]
    return list(found.values())
