"""The modules of a model as owners of time and memory: their paths, classes and roles, and which of them runs now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from peftkit.layout import Layout
from peftkit.ports.adapter import Adapter
from peftkit.ports.seat import Seat

LOSS = "(loss)"
"""The owner of what is computed in no module: the head's product and the cross-entropy, where the engine does them."""
WHOLE = "(model)"
"""The path of the model itself, whose name is empty in torch."""


def owners(model: nn.Module) -> dict[str, str]:
    """Return the labels of a model's modules by path, the loss among them: the class and the role, `Linear (gate)`.

    An adapter's path is `<site's module>.seated.<adaptation>.<number>`.
    """
    layout = Layout(model)
    roles = {site.path: str(site.role) for site in layout.linears if site.rows is None and site.role}
    roles |= {part.path: part.kind for part in layout.parts} | dict.fromkeys(layout.blocks, "block")
    labels = {LOSS: "outside of all modules"}
    for name, module in model.named_modules():
        path = name or WHOLE
        role = roles.get(path)
        if isinstance(module, Adapter):
            role = f"at {module.site.role or module.site.path}"
        kind = type(module).__mro__[2 if isinstance(module, Seat) else 0].__name__
        labels[path] = f"{kind} ({role})" if role else kind
    return labels


def place(path: str) -> str:
    """Return the place that modules of all layers share: their path with a star for each number."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path)


def ancestors(path: str) -> Iterator[str]:
    """Iterate over the paths of the modules around a module, the nearest first."""
    if path in (LOSS, WHOLE):
        return
    while "." in path:
        path = path.rpartition(".")[0]
        yield path
    yield WHOLE


@contextmanager
def watched(model: nn.Module, enter: Callable[[str], None], leave: Callable[[], object]) -> Iterator[None]:
    """Call `enter` with the path of every module whose forward pass begins inside, and `leave` where it ends.

    What a module computes inside of its adapter's forward pass is the module's, not the adapter's.
    """
    handles = []
    for name, module in model.named_modules():
        begin, end = _hooks(module, name or WHOLE, enter, leave)
        for hook in (begin, end):
            # What runs a module in another way may pass such hooks by (`peftkit.engine.fused_modules`).
            hook.watches = True
        handles.append(module.register_forward_pre_hook(begin, prepend=True))
        # Also where a pass is broken off, as recomputation does once it has what it wants.
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooks(module: nn.Module, path: str, enter: Callable[[str], None], leave: Callable[[], object]) -> tuple[Any, Any]:
    def begin(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        enter(path)
        if isinstance(module, Adapter) and args and callable(args[0]):
            return (partial(seated, module.site.path or WHOLE, args[0]), *args[1:])
        return None

    def seated(site: str, call: Callable[..., Any], *args: Any) -> Any:
        enter(site)
        try:
            return call(*args)
        finally:
            leave()

    def end(*_: Any) -> None:
        leave()

    return begin, end
