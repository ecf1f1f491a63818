"""Trained adapters of the same base that methods build from: frozen, given to their sites by name, not saved again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from peftkit.adaptation.state import Child
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter
from peftkit.ports.context import LINK, Context


class Frozen(nn.ModuleList):
    """Modules that are in eval mode, whatever the model is told."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def freeze(children: Mapping[str, Child], context: Context) -> Frozen:
    """Return the modules of all children, frozen; their adapters read `context`."""
    frozen = Frozen(module for child in children.values() for module in child.state.added())
    for module in frozen:
        if isinstance(module, Adapter):
            module.__dict__[LINK] = context
    frozen.requires_grad_(False)
    return frozen.train(False)


def with_children(site: Site, children: Mapping[str, Child]) -> Site:
    """Return the site with what of each child was trained there."""
    adapters = {name: adapter for name, child in children.items() if (adapter := child.at(site.id)) is not None}
    return replace(site, children=adapters) if adapters else site
