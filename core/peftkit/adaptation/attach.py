"""Attach methods to a model, and switch between what is attached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise, permutations
from typing import Any, TypeVar, cast

import torch
from torch import nn

from peftkit.adaptation.adaptation import ATTRIBUTE, Adaptation, Attached, attached
from peftkit.adaptation.children import freeze, with_children
from peftkit.adaptation.part import Part
from peftkit.adaptation.state import Child
from peftkit.errors import PeftkitError, nearest
from peftkit.layers.stacked import build_at
from peftkit.layout import Layout, Site, own_parameters
from peftkit.method import Method, expand
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import listen
from peftkit.ports.context import Routing, context_of
from peftkit.ports.embedding import SoftPrompt, pad
from peftkit.ports.seat import seat

Module = TypeVar("Module", bound=Any)


def check_methods(
    model: nn.Module, methods: Sequence[Method], layout: Layout | None = None
) -> list[tuple[dict[str, Any], list[str]]]:
    """Find each method's sites (by id) and own parameters (names) without changing the model; refuse what cannot be.

    `layout` is that of the model, where the caller has it already. A named combination is checked as its parts, in
    their places. Raises PeftkitError for a target without a match, a rank above a layer's, a method that would train
    nothing, or two methods that own one parameter, or work on a weight that the start of one of them changes.
    """
    layout = layout or Layout(model)
    matches: list[tuple[dict[str, Any], list[str]]] = []
    owners: dict[str, str] = {}
    for method in expand(methods):
        sites = {site.id: site for site in method.sites(layout)}
        own = [name for name, parameter in own_parameters(model) if method.select(layout, name, parameter)]
        if not sites and not own:
            raise PeftkitError(f"the method '{method.name}' finds nothing to train in this {layout.kind} model.")
        taken = next((name for name in own if name in owners), None)
        if taken is not None:
            raise PeftkitError(
                f"the methods '{owners[taken]}' and '{method.name}' both train {taken}: keep one of them."
            )
        owners.update(dict.fromkeys(own, method.name))
        matches.append((sites, own))
    _check_splits(expand(methods), matches)
    return matches


def notices(methods: Sequence[Method], layout: Layout) -> list[str]:
    """Return what the methods say of their places in a model, each line once."""
    return list(dict.fromkeys(line for method in expand(methods) for line in method.notices(layout)))


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        logging.getLogger("peftkit").info(line)


def _check_splits(methods: Sequence[Method], matches: Sequence[tuple[dict[str, Any], list[str]]]) -> None:
    used = [
        {site.path for site in sites.values()} | {name.removesuffix(".weight") for name in own}
        for sites, own in matches
    ]
    for one, other in permutations(range(len(methods)), 2):
        both = used[one] & used[other]
        if methods[one].splits_base and both:
            raise PeftkitError(
                f"the method '{methods[one].name}' starts by changing the frozen weight of {min(both)}, on which "
                f"'{methods[other].name}' works too: keep one of them there, or choose another init."
            )


def attach(
    model: nn.Module,
    methods: Sequence[Method],
    name: str = "default",
    seed: int = 0,
    *,
    keep_base: bool = True,
    loading: bool = False,
    children: Mapping[str, Child] | None = None,
) -> Adaptation:
    """Freeze the model, seat the methods' adapters and return the handle; the adaptation is active.

    Every adapter starts from its own seeded generator on the CPU, so that the start depends on `seed`, the position
    of the method and the site alone. Own parameters that a method trains are held in fp32. `keep_base` keeps the old
    values of own parameters and of frozen weights that a start changes, without which the adaptation can neither be
    switched off nor removed. With `loading`, a start that is taken out of frozen weights waits for `load_state`. A
    named combination is attached as its parts, which take one position each; `chosen` of the handle keeps the methods
    as they were given. Adapters are built at sites that hold what of the `children` was trained there.
    """
    matches = check_methods(model, methods)
    layout = Layout(model)
    _tell([] if loading else notices(methods, layout))
    root: Attached = model.__dict__.get(ATTRIBUTE) or Attached(
        context_of(model), trainable={n: p.requires_grad for n, p in own_parameters(model)}
    )
    if name in root.adaptations:
        raise PeftkitError(f"an adapter named '{name}' is attached already: name this one otherwise.")
    root.check_unmerged()
    for other in root.adaptations:
        _switch_parts(root.adaptations[other], on=False)
    built = [
        build_all(model, method, sites, f"{seed}/{position}", start=not loading, children=children or {})
        for position, (method, (sites, _)) in enumerate(zip(expand(methods), matches, strict=True))
    ]
    model.__dict__[ATTRIBUTE] = root
    for _, parameter in own_parameters(model):
        parameter.requires_grad_(False)
    parts = []
    for position, (method, (adapters, shared), (_, own)) in enumerate(
        zip(expand(methods), built, matches, strict=True)
    ):
        if shared is not None:
            _keep_beside(model, shared, f"{name}-{position}")
        for adapter in adapters.values():
            seat(adapter, name, root.context)
        trained = {key: p for key, p in own_parameters(model) if key in set(own)}
        base = {key: p.detach().clone() for key, p in trained.items()} if keep_base else None
        for parameter in trained.values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        parts.append(Part(method, adapters, trained, base, shared))
    adaptation = Adaptation(model, layout, parts, name, tuple(methods))
    _adopt(adaptation, children or {})
    root.adaptations[name] = adaptation
    _place_soft_prompts(adaptation)
    if any(adapter.inside for adapter in adaptation.adapters()) and not root.context.watchers:
        listen(model, root.context)
    for part in parts if not loading else ():
        part.settle()
    root.context.activate([name])
    return adaptation


def activate(model: nn.Module, name: str | None) -> None:
    """Switch the model to the adaptation `name`, or to the bare base."""
    root = attached(model)
    if name is not None and name not in root.adaptations:
        guess = nearest(name, root.adaptations)
        raise PeftkitError(f"no adapter is named '{name}'; attached: {', '.join(root.adaptations)}. Meant '{guess}'?")
    root.check_unmerged(name)
    for other, adaptation in root.adaptations.items():
        if other != name:
            _switch_parts(adaptation, on=False)
    if name is not None:
        _switch_parts(root.adaptations[name], on=True)
    root.context.activate([] if name is None else [name])


def route(model: nn.Module, rows: Sequence[str | None]) -> Any:
    """Return a context in which row i of every batch runs through the adaptation `rows[i]` (None: the base).

    Raises PeftkitError for an adaptation that changes the model's own weights, and while one is merged.
    """
    root = attached(model)
    root.check_unmerged()
    for name in dict.fromkeys([*(row for row in rows if row is not None), *root.context.active]):
        if any(part.changed for part in root.adaptations[name].parts):
            raise PeftkitError(
                f"the adapter '{name}' changes the model's own weights and cannot share a batch with others."
            )
    return root.context.routed(Routing.of_rows(rows))


def _switch_parts(adaptation: Adaptation, on: bool) -> None:
    for part in adaptation.parts:
        part.switch(on)


def build_all(
    model: nn.Module,
    method: Method,
    sites: Mapping[str, Site],
    seed: str,
    *,
    start: bool,
    children: Mapping[str, Child],
) -> tuple[dict[str, Adapter], nn.Module | None]:
    """Build a method's adapters at these sites with the children there, and what they share; nothing is seated."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    shared = _seeded(lambda: method.share(Layout(model)), f"{seed}/shared", device)
    adapters = {}
    for key, site in sites.items():
        place = next((tensor.device for tensor in site.module.parameters()), device)
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


def _adopt(adaptation: Adaptation, children: Mapping[str, Child]) -> None:
    adaptation.children = children
    if children:
        _keep_beside(adaptation.model, freeze(children, adaptation.context), f"{adaptation.name}-children")


def _keep_beside(model: nn.Module, module: nn.Module, name: str) -> None:
    """Register a module at the model's root, so that it goes where the model goes."""
    if "seated" not in model.__dict__["_modules"]:
        model.add_module("seated", nn.ModuleDict())
    cast(nn.ModuleDict, model.get_submodule("seated"))[name] = module


def _place_soft_prompts(adaptation: Adaptation) -> None:
    """Give the soft prompts ids behind each other, and have other embeddings by token id see the padding token there.

    So does transformers where a model is given images in the place of tokens.
    """
    prompts = [adapter for adapter in adaptation.adapters() if isinstance(adapter, SoftPrompt)]
    for before, prompt in pairwise(prompts):
        prompt.first = before.first + before.length
    if prompts:
        padding = getattr(adaptation.layout.config.get_text_config(), "pad_token_id", None) or 0
        tables = adaptation.layout.other_tables()
        adaptation.hooks = [pad(table, prompts[0].first, padding) for table in tables]
