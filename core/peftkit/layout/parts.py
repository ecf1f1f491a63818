"""The layers of a decoder and the parts of each: its mixers and its feed-forward parts, whatever they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftkit.layout.sites import own_class
from peftkit.quantization.stack import stacks_of
from peftkit.quantization.weight import shape

KINDS = ("attention", "mlp")
"""The kinds of parts: what lets tokens see each other (a mixer of any sort), and what works on each by itself."""

ENDS = ("down", "output", "w2")
"""What the names of stacks that end experts have in them."""


@dataclass(frozen=True)
class LayerPart:
    """A mixer (`attention`) or a feed-forward part (`mlp`) of one layer."""

    path: str
    kind: str
    layer: int
    stacked: bool = False
    """Whether it holds experts, of which a router chooses."""


def layers_of(modules: Mapping[str, nn.Module], decoder: nn.Module) -> list[str]:
    """Return the paths of a decoder's layers, lowest first: the longest list of modules in it that hold linear maps.

    A list inside another is no list of layers, as that of experts in a layer. Of stacks of one kind that a decoder
    has beside each other all count.
    """
    inside = {id(module) for module in decoder.modules()}
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList) and id(module) in inside]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    stacks = {name: list(modules[name].children()) for name in outer if _holds_layers(modules[name])}
    if not stacks:
        return []
    best = max(stacks, key=lambda name: len(stacks[name]))
    kind = _stack_kind(modules, best)
    alike = [name for name in stacks if _stack_kind(modules, name) == kind]
    return [f"{name}.{index}" for name in alike for index in range(len(stacks[name]))]


def parts_of(
    modules: Mapping[str, nn.Module], block: str, layer: int, names: Mapping[str, Any]
) -> tuple[list[LayerPart], list[str]]:
    """Return the parts of a layer, and the paths of what inputs other than text reach."""
    away: list[str] = []
    found = list(_walk(modules, block, block, names, away))
    found.sort(key=lambda pair: KINDS.index(pair[1]))
    return [LayerPart(path, kind, layer, holds_experts(modules[path])) for path, kind in found], away


def holds_experts(module: nn.Module) -> bool:
    """Say whether a part holds experts, by the names of the modules in it and of their classes."""
    inner = ((name, inside) for name, inside in module.named_modules() if ".seated" not in f".{name}")
    return any("expert" in f"{name} {own_class(inside).__name__}".lower() for name, inside in inner)


def stacks_in(path: str, module: nn.Module, width: int) -> Iterator[tuple[str, int, int, int, bool, bool]]:
    """Iterate over the stacks of experts' weights that a module holds, packed ones too, each a weight for each expert.

    `path` is the module's in its layer. They come as name, number of experts, inputs, outputs, whether the inputs stand
    in front of the outputs, and whether the stack ends the experts. Which side the inputs are a model says by
    `is_transposed`, or else the width of the hidden states does.
    """
    if "expert" not in own_class(module).__name__.lower():
        return
    for name, (count, first, second) in stacks_of(module):
        reads = not any(word in f"{path}.{name}" for word in ENDS)
        turned = getattr(module, "is_transposed", (first if reads else second) == width != (second if reads else first))
        inputs, outputs = (first, second) if turned else (second, first)
        yield name, count, inputs, outputs, bool(turned), not reads


def leads_to_choice(path: str) -> bool:
    """Say whether a path below a layer leads into a router of experts or an indexer of keys."""
    return leads_to_indexer(path) or any("router" in words for words in _words(path))


def leads_to_indexer(path: str) -> bool:
    """Say whether a path leads into what picks the keys that attention sees; no gradient comes back from there."""
    return any("indexer" in words for words in _words(path))


def is_gate(path: str) -> bool:
    """Say whether a path below a part with experts leads into what chooses or weighs them."""
    return any({"gate", "gating"} & words and "proj" not in words for words in _words(path))


def _holds_layers(module: nn.Module) -> bool:
    return all(
        any(shape(inner) is not None for inner in member.modules()) and next(member.children(), None) is not None
        for member in module.children()
    )


def _stack_kind(modules: Mapping[str, nn.Module], name: str) -> tuple[Any, ...]:
    members = list(modules[name].children())
    return own_class(modules[name.rpartition(".")[0]]), len(members), frozenset(map(own_class, members))


def _walk(
    modules: Mapping[str, nn.Module], block: str, home: str, names: Mapping[str, Any], away: list[str]
) -> Iterator[tuple[str, str]]:
    for name, child in modules[home].named_children():
        path = f"{home}.{name}"
        if path not in modules or shape(child) is not None or "norm" in type(child).__name__.lower():
            continue
        if name in names.get("elsewhere", ()):
            away.append(path)
            continue
        kind = _kind_by_name(path.removeprefix(f"{block}."), name, child, names)
        if kind is not None and isinstance(child, nn.ModuleList):
            yield from ((f"{path}.{index}", kind) for index in range(len(child)))
            continue
        inner = [] if kind is not None else list(_walk(modules, block, path, names, away))
        kind = kind or (None if inner else _kind_by_class(child, names))
        yield from [(path, kind)] if kind is not None else inner


def _kind_by_name(below: str, name: str, module: nn.Module, names: Mapping[str, Any]) -> str | None:
    named = next((kind for kind in KINDS if below in names[kind] or name in names[kind]), None)
    # A name such as `mixer` stands for whatever its class says.
    return (_kind_by_class(module, names) or named) if named is not None else None


def _kind_by_class(module: nn.Module, names: Mapping[str, Any]) -> str | None:
    classes, own = names.get("classes", {}), own_class(module).__name__
    return next((kind for kind in KINDS if kind in classes and re.search(classes[kind], own)), None)


def _words(path: str) -> list[set[str]]:
    return [set(re.split(r"[_\W]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())) for name in path.split(".")]
