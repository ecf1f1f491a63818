"""Any method in some layers alone: the base of methods that share the layers of a model out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.in_front import in_front

Within = Callable[[Layout], Collection[int]]


@dataclass(frozen=True, kw_only=True)
class Somewhere(Method):
    """Stands in front of a method's class: its places and own parameters are those in some layers."""

    within: Within
    """A function of the layout that returns the layers."""

    def sites(self, layout: Layout) -> list[Site]:
        sites, layers = super().sites(layout), self.within(layout)
        inside = [site for site in sites if site.layer in layers]
        if sites and not inside:
            told = ", ".join(map(str, sorted(layers)))
            raise PeftkitError(f"{self.name}: it has no place in the layers {told}: give them another method.")
        return inside

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return layout.layer_of(name) in self.within(layout) and super().select(layout, name, parameter)


def somewhere(method: Method, within: Within, home: str, rate: float | None = None) -> Method:
    """Return a method that stands in the layers `within(layout)` alone, a part of `home`."""
    return in_front(Somewhere, method, home, rate, within=within)


def between(first: int, last: int | None) -> Within:
    """Return a function of the layout: the layers from `first` to `last`, or to the top."""

    def layers(layout: Layout) -> Collection[int]:
        return range(first, len(layout.blocks) if last is None else last + 1)

    return layers
