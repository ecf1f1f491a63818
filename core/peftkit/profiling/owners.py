"""The modules of a model as owners of time and memory: their paths, classes and roles, and which of them runs now."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import nn

from peftkit.layout import Layout
from peftkit.ports.adapter import Adapter
from peftkit.ports.seat import Seat

LOSS = "(loss)"
"""The owner of what is computed in no module: the head's product and the cross-entropy, where the engine does them."""
WHOLE = "(model)"
"""The path of the model itself, whose name is empty in torch."""


@dataclass(frozen=True)
class Owner:
    """A module, or what is computed outside of all modules."""

    path: str
    """As in `named_modules`; an adapter's is `<site's module>.seated.<adaptation>.<number>`."""
    label: str
    """The class, and the role in the layer where it has one: `Linear (gate)`, `LlamaRMSNorm`."""


class Watcher(Protocol):
    """What is told when the forward pass of a module begins and ends."""

    def enter(self, path: str) -> None:
        """The module at `path` begins, or goes on inside one of its adapters."""
        ...

    def leave(self) -> None:
        """What began last ends."""
        ...


def owners(model: nn.Module) -> dict[str, Owner]:
    """Return the owners of a model by path, the loss among them."""
    layout = Layout(model)
    roles = {site.path: str(site.role) for site in layout.linears if site.rows is None and site.role}
    for role in ("attention", "mlp", "block"):
        roles |= dict.fromkeys(_hidden(layout, role), role)
    owned = {LOSS: Owner(LOSS, "outside of all modules")}
    for name, module in model.named_modules():
        path = name or WHOLE
        role = roles.get(path)
        if isinstance(module, Adapter):
            role = f"at {module.site.role or module.site.path}"
        kind = own_class(module).__name__
        owned[path] = Owner(path, f"{kind} ({role})" if role else kind)
    return owned


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has without adapters."""
    return type(module).__mro__[2] if isinstance(module, Seat) else type(module)


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
def watched(model: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every module whose forward pass begins or ends inside.

    What a module computes inside of its adapter's forward pass is the module's, not the adapter's.
    """
    handles = []
    for name, module in model.named_modules():
        begin, end = _begin(module, name or WHOLE, watcher), _end(watcher)
        for hook in (begin, end):
            # What runs a module in another way may pass such hooks by (`peftkit.engine.fused_modules`).
            cast(Any, hook).watches = True
        handles.append(module.register_forward_pre_hook(begin, prepend=True))
        # Also where a pass is broken off, as recomputation does once it has what it wants.
        handles.append(module.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _begin(module: nn.Module, path: str, watcher: Watcher) -> Callable[..., Any]:
    def hook(hooked: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        watcher.enter(path)
        if isinstance(module, Adapter) and args and callable(args[0]):
            return (_inner(args[0], module.site.path or WHOLE, watcher), *args[1:])
        return None

    return hook


def _end(watcher: Watcher) -> Callable[..., None]:
    return lambda module, args, output: watcher.leave()


def _inner(call: Callable[..., Any], path: str, watcher: Watcher) -> Callable[..., Any]:
    def inner(*args: Any) -> Any:
        watcher.enter(path)
        try:
            return call(*args)
        finally:
            watcher.leave()

    return inner


def _hidden(layout: Layout, role: str) -> list[str]:
    names = [""] if role == "block" else layout.names[role]
    paths = (f"{block}.{name}".rstrip(".") for block in layout.blocks for name in names)
    return [path for path in paths if path in layout.modules]
