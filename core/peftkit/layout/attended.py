"""The attention modules of a model's layers as sites, for adapters that act on queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from peftkit.errors import PeftkitError
from peftkit.families import Family, Heads
from peftkit.layout.sites import Site
from peftkit.quantization.weight import shape

if TYPE_CHECKING:
    from peftkit.layout.layout import Layout


def attention_sites(layout: Layout, family: Family) -> list[Site]:
    """Return the attention modules of the layers that adapters can enter, with what is in them, lowest layer first."""

    def site(path: str, heads: Heads | None = None) -> Site:
        module = layout.modules[path]
        # The first linear map inside tells what is read: some attend to more than the hidden states.
        inputs = next((sizes[1] for child in module.modules() if (sizes := shape(child))), layout.width)
        bare = Site(path, module, inputs, layout.width, "attention", layout.layer_of(path), heads=heads)
        return replace(bare, parts=layout.inside(bare))

    def known(path: str) -> Heads | None:
        whole = site(path)
        sizes = [whole.parts[role].outputs if role in whole.parts else 0 for role in ("q", "k", "v")]
        share = getattr(whole.module, "num_key_value_groups", 1)
        # Maps of other sizes, as those of gates or of experts, do not tell what attention is given.
        plain = sizes[0] > 0 and sizes[0] == share * sizes[1] and sizes[1] == sizes[2]
        return Heads(sizes[1], sizes[2]) if plain else None

    sites = [site(path, heads) for path, heads in family.attentions(layout.model, known, shape).items()]
    return [each for each in sites if each.layer is not None]


def entered(kind: str, sites: Sequence[Site], layers: Iterable[int] | None) -> list[Site]:
    """Return the sites in these layers; PeftkitError where there are none."""
    if not sites:
        raise PeftkitError(
            f"this {kind} model has no attention that an adapter can enter: choose a method of another port."
        )
    kept = None if layers is None else set(layers)
    chosen = [site for site in sites if kept is None or site.layer in kept]
    if not chosen:
        raise PeftkitError(f"no layer of those that are chosen has attention in this {kind} model.")
    return chosen
