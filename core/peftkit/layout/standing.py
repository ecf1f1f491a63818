"""What the default targets of a method mean in a model that has no maps of these roles: what stands in their place."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from peftkit.layout.layout import Layout
from peftkit.layout.sites import Site
from peftkit.layout.targets import GROUPS, names_module
from peftkit.quantization.stack import stacks_of
from peftkit.quantization.weight import shape

HALF = 0.5
"""Of the weights of the layers; what covers less is told."""

STANDING = {"q": ("q_b", "in"), "k": ("kv_b", "in"), "v": ("kv_b", "in")}
"""The roles that stand for another, the first that a layer has: up-projections of latent attention, or input maps."""
WHOLE = {"o": "attention", "down": "mlp"}
"""The part of a layer behind which an adapter stands where no single map ends it."""


@dataclass
class Standing:
    """The sites of default targets, and where they are others than those of these roles."""

    sites: list[Site]
    replaced: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    """The layers in which a role is missing, by it and what stands there; an empty name where nothing does."""

    def notices(self, layout: Layout) -> list[str]:
        """Say in a line for each kind of replacement what stands for what, and in how many layers."""
        count, merged = len(layout.blocks), {}
        for (role, name), layers in self.replaced.items():
            merged.setdefault((name, frozenset(layers)), []).append(role)
        return [
            f"{len(layers)} of the {count} layers of this {layout.kind} model have no {' and no '.join(roles)}: "
            f"{name or 'nothing'} stands for {'it' if len(roles) == 1 else 'them'} there"
            for (name, layers), roles in merged.items()
        ]


def standing(
    layout: Layout,
    roles: Sequence[str],
    layers: Iterable[int] | None = None,
    exclude: Sequence[str] = (),
    stacks: bool = False,
) -> Standing:
    """Return the sites of these roles, layer by layer, and of what stands for them in layers without.

    Where a mixer has no queries, keys or values these are the up-projections of latent attention, or else the maps
    that read its input; where no single map ends a mixer or a feed-forward part, it is the whole part, or, with
    `stacks`, each map that ends experts. The result may be empty, as `layers` and `exclude` can make it.
    """
    kept = range(len(layout.blocks)) if layers is None else set(layers)
    result = Standing([])
    chosen: dict[str, Site] = {}
    for role in roles:
        for layer in range(len(layout.blocks)) if role not in exclude else ():
            if layer in kept:
                found = _found(layout, role, layer, result, stacks)
                chosen.update((site.id, site) for site in found)
    out = {site.id for pattern in exclude for site in layout.linears if _names(pattern, site)}
    whole = {site.id for pattern in exclude for site in chosen.values() if names_module(pattern, site.path)}
    result.sites = [site for site in chosen.values() if site.id not in out | whole]
    return result


def otherwise(layout: Layout, roles: Collection[str], layers: Iterable[int] | None) -> Standing:
    """Return what stands for roles of which no layer has anything: whole mixers for ends of parts, or linear maps."""
    name = "attention" if set(roles) <= set(WHOLE) else "linear"
    sites = layout.hidden(name, layers) if name != "linear" else layout.resolve(name, layers)
    missing = {site.layer for site in sites if site.layer is not None}
    return Standing(sites, {(role, _word(name)): missing for role in roles})


def left_out(layout: Layout, sites: Collection[Site]) -> str | None:
    """Say in a line how little of the weights of the layers the sites cover; None where it is most of them."""
    inside = tuple(f"{block}." for block in layout.blocks)
    modules = [(name, module) for name, module in layout.modules.items() if name.startswith(inside)]
    maps = {id(module) for _, module in modules if shape(module) is not None}
    total = sum(math.prod(shape(module) or (0,)) for _, module in modules)
    stacks = {
        name: sum(shape.numel() for _, shape in stacks_of(module)) for name, module in modules if id(module) not in maps
    }
    total += sum(stacks.values())
    share = sum(site.inputs * site.outputs * max(1, site.experts) for site in sites) / max(1, total)
    largest = max(stacks, key=lambda name: stacks[name], default=None)
    if share >= HALF or largest is None:
        return None
    return f"the targets cover {share:.1%} of the weights of the layers: stacks such as {largest} are left out"


def _found(layout: Layout, role: str, layer: int, result: Standing, stacks: bool) -> list[Site]:
    maps = [site for site in layout.linears if site.layer == layer]
    if role == "down":
        return _ends(layout, maps, layer, result, stacks)
    own = [site for site in maps if site.role == role]
    mixers = [part for part in layout.parts if part.layer == layer and part.kind == "attention"]
    if own or not mixers or role in GROUPS["mlp"]:
        return own
    if role in WHOLE:
        return _replaced(role, layout.hidden("attention", [layer]), layer, result)
    for other in STANDING.get(role, ()):
        own = [site for site in maps if site.role == other]
        if own:
            break
    return _replaced(role, own, layer, result)


def _ends(layout: Layout, maps: Sequence[Site], layer: int, result: Standing, stacks: bool) -> list[Site]:
    """Return the ends of a layer's feed-forward parts: their last maps, or the whole part where experts end it too."""
    parts = [part for part in layout.parts if part.layer == layer and part.kind == "mlp"]
    whole = {site.path: site for site in layout.hidden("mlp", [layer])} if parts else {}
    ends = [site for site in maps if site.role == "down"]
    found: list[Site] = []
    for part in parts:
        inside = [site for site in ends if site.path.startswith(f"{part.path}.")]
        last = [site for site in layout.stacks if stacks and site.ends and site.path.startswith(f"{part.path}.")]
        if inside and not part.stacked:
            found += inside
        elif last:
            found += inside + _replaced("down", last, layer, result)
        else:
            found += _replaced("down", [whole[part.path]], layer, result)
    return found or ends


def _replaced(role: str, sites: list[Site], layer: int, result: Standing) -> list[Site]:
    names = dict.fromkeys(_word(site.role or "") for site in sites)
    result.replaced.setdefault((role, ", ".join(names)), set()).add(layer)
    return sites


def _word(role: str) -> str:
    return {"attention": "the whole mixer", "mlp": "the whole feed-forward part", "linear": "every linear map"}.get(
        role, role
    )


def _names(pattern: str, site: Site) -> bool:
    return site.role in GROUPS.get(pattern, (pattern,)) or site.group == pattern or names_module(pattern, site.path)
