"""Attach methods to a model, and switch between what is attached."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise, permutations
from typing import Any, cast

from torch import Tensor, nn

from peftkit.adaptation.adaptation import ATTRIBUTE, Adaptation, Attached, attached
from peftkit.adaptation.building import build_all, outline
from peftkit.adaptation.children import freeze
from peftkit.adaptation.part import Part
from peftkit.adaptation.state import Child
from peftkit.errors import PeftkitError, nearest
from peftkit.layout import Layout, left_dense, own_parameters
from peftkit.method import Method, expand, keys_of
from peftkit.ports.attention import listen
from peftkit.ports.body import hear
from peftkit.ports.context import Routing, context_of
from peftkit.ports.embedding import SoftPrompt, pad, pad_ids
from peftkit.ports.seat import seat


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
    keys_of(methods)
    return matches


def notices(methods: Sequence[Method], layout: Layout) -> list[str]:
    """Return what is to be said of a model's storage and of the methods' places in it, each line once."""
    dense = left_dense(layout)
    lines = [line for method in expand(methods) for line in method.notices(layout)]
    return list(dict.fromkeys([*lines, *([dense] if dense else [])]))


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
    matches, layout = check_methods(model, methods), Layout(model)
    if not loading:
        _tell(notices(methods, layout))
        outline(model, methods, matches, children or {})
    root = _root(model)
    if name in root.adaptations:
        raise PeftkitError(f"an adapter named '{name}' is attached already: name this one otherwise.")
    _put_aside(root)
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
        parts.append(Part(method, adapters, *_unfreeze(model, own, keep_base), shared))
    adaptation = Adaptation(model, layout, parts, name, tuple(methods))
    _adopt(adaptation, children or {})
    root.adaptations[name] = adaptation
    _place_soft_prompts(adaptation)
    _hear_tokens(adaptation)
    if any(adapter.inside for adapter in adaptation.adapters()) and not root.context.watchers:
        listen(model, root.context)
    for part in parts if not loading else ():
        part.settle()
    root.context.activate([name])
    return adaptation


def _unfreeze(
    model: nn.Module, own: Collection[str], keep_base: bool
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor] | None]:
    """Have the parameters named in `own` train in fp32; returns them, and their values before with `keep_base`."""
    trained = {key: p for key, p in own_parameters(model) if key in set(own)}
    base = {key: p.detach().clone() for key, p in trained.items()} if keep_base else None
    for parameter in trained.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return trained, base


def _root(model: nn.Module) -> Attached:
    """Return what holds the adaptations of a model, made anew where it has none."""
    there = model.__dict__.get(ATTRIBUTE)
    return there or Attached(context_of(model), trainable={n: p.requires_grad for n, p in own_parameters(model)})


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


def _put_aside(root: Attached) -> None:
    """Put the base's weights in the place of what the adaptations made of them."""
    root.check_unmerged()
    for adaptation in root.adaptations.values():
        _switch_parts(adaptation, on=False)


def _switch_parts(adaptation: Adaptation, on: bool) -> None:
    for part in adaptation.parts:
        part.switch(on)


def _adopt(adaptation: Adaptation, children: Mapping[str, Child]) -> None:
    adaptation.children = children
    if children:
        _keep_beside(adaptation.model, freeze(children, adaptation.context), f"{adaptation.name}-children")


def _keep_beside(model: nn.Module, module: nn.Module, name: str) -> None:
    """Register a module at the model's root, so that it goes where the model goes."""
    if "seated" not in model.__dict__["_modules"]:
        model.add_module("seated", nn.ModuleDict())
    cast(nn.ModuleDict, model.get_submodule("seated"))[name] = module


def _hear_tokens(adaptation: Adaptation) -> None:
    """Have the context keep what the body is given, where adapters ask for that or move its positions."""
    asked = {adapter.reads for adapter in adaptation.adapters()} - {""}
    if any(adapter.moves for adapter in adaptation.adapters()):
        adaptation.context.moves[adaptation.name] = adaptation.moved
    if adaptation.keys is not None:
        adaptation.context.keyed[adaptation.name] = adaptation.keys
    if asked or adaptation.name in adaptation.context.moves:
        hear(adaptation.layout.bodies(), adaptation.context, adaptation.name)
    if "prompt" in asked:
        adaptation.context.readers.add(adaptation.name)


def _place_soft_prompts(adaptation: Adaptation) -> None:
    """Give the soft prompts ids behind each other; what else reads ids sees the padding token there.

    So does transformers where a model is given images in the place of tokens.
    """
    prompts = [adapter for adapter in adaptation.adapters() if isinstance(adapter, SoftPrompt)]
    for before, prompt in pairwise(prompts):
        prompt.first = before.first + before.length
    if prompts:
        padding = getattr(adaptation.layout.config.get_text_config(), "pad_token_id", None) or 0
        tables = adaptation.layout.other_tables()
        adaptation.hooks += [pad(table, prompts[0].first, padding) for table in tables]
        adaptation.hooks += [pad_ids(layer, prompts[0].first, padding) for layer in adaptation.layout.told_tokens()]
        adaptation.context.soft[adaptation.name] = lambda: (prompts[0].first, len(adaptation.soft_ids))
