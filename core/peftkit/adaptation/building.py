"""Building the adapters of methods at their sites, and beforehand an outline of them, which takes no memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from peftkit.adaptation.children import with_children
from peftkit.adaptation.part import Part
from peftkit.adaptation.state import Child, State
from peftkit.errors import PeftkitError
from peftkit.free_memory import check_room
from peftkit.layers.stacked import build_at
from peftkit.layout import Layout, Site, own_parameters
from peftkit.method import Method, expand
from peftkit.ports.adapter import Adapter

Module = TypeVar("Module", bound=Any)
META = torch.device("meta")


def outline(
    model: nn.Module,
    methods: Sequence[Method],
    matches: Sequence[tuple[Mapping[str, Site], Sequence[str]]],
    children: Mapping[str, Child],
) -> State:
    """Build on the meta device what `build_all` would build; `matches` are sites and own parameters of each method.

    Raises PeftkitError where what is built would be larger than the memory that is free.
    """
    state = State(model, Layout(model), [], "outline", tuple(methods))
    for method, (sites, own) in zip(expand(methods), matches, strict=True):
        try:
            adapters, shared = build_all(model, method, sites, "outline", start=False, children=children, device=META)
        except (RuntimeError, TypeError, OverflowError) as error:
            # torch has a type for each way to say that a size has no room in a machine word.
            if "verflow" in str(error) or "too big" in str(error):
                raise PeftkitError(f"{method.name}: its tensors would be larger than any memory is.") from None
            raise
        trained = {name: parameter for name, parameter in own_parameters(model) if name in set(own)}
        state.parts.append(Part(method, adapters, trained, shared=shared))
    tensors = (tensor for part in state.parts for name, tensor in part.built())
    check_room(sum(tensor.nbytes for tensor in tensors), " + ".join(method.name for method in methods))
    return state


def build_all(
    model: nn.Module,
    method: Method,
    sites: Mapping[str, Site],
    seed: str,
    *,
    start: bool,
    children: Mapping[str, Child],
    device: torch.device | None = None,
) -> tuple[dict[str, Adapter], nn.Module | None]:
    """Build a method's adapters at these sites with the children there, and what they share; nothing is seated.

    They are brought to the devices of the model and of the sites, where no `device` is named.
    """
    home = device or next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    shared = _seeded(lambda: method.share(Layout(model)), f"{seed}/shared", home)
    adapters = {}
    for key, site in sites.items():
        place = device or next((tensor.device for tensor in site.module.parameters()), home)
        adapter = _seeded(partial(_build, method, with_children(site, children), start), f"{seed}/{key}", place)
        adapter.__dict__["shared"] = shared
        adapters[key] = adapter.train(site.module.training)
    return adapters, shared


def _build(method: Method, site: Site, start: bool) -> Adapter:
    adapter = build_at(site, method.build)
    if set(site.children.values()) & set(adapter.modules()):
        raise TypeError(f"the method '{method.name}' registers a child in its adapter: read it from site.children")
    if start:
        adapter.start()
    return adapter


def _seeded(build: Callable[[], Module], key: str, device: torch.device) -> Module:
    """Build a module on the CPU under a seed that follows from `key`, and bring it to `device`."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
        torch.default_generator.manual_seed(seed)
        module = build()
    return cast(Module, module if module is None else module.to(device))
