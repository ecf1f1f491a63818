"""Sizes by budget: the rank, width, length or share with which a method stores a given number of values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from peftkit import adapt
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import Method

TOLERANCE = 0.01
"""The relative deviation from the budget above which single modules get a size of their own."""
SHARES = 1 << 32
"""Shares are looked for among the fractions with this denominator."""


def solve(cls: type[Method], layout: Layout, budget: float, options: Mapping[str, Any]) -> tuple[Method, float]:
    """Return the method with the size that stores nearest to `budget` numbers, and by what share of it it is off.

    `options` are the method's others; a size among them is replaced. Sizes that the model refuses are left out. Where
    the budget lies between two sizes, the nearer is off by more than 1 % and the method can set sizes by module
    (`<size>_pattern`), whole roles and then single modules, from the top layer down, get one more than the smaller
    size. A method without a size comes back as the options make it; where even the smallest size stores more, or the
    largest less, that size is the answer, and the deviation tells (negative: less than the budget). Weights are not
    read, so that a model on the meta device will do.

    Raises PeftkitError for a budget below one, wrong options, and a method that does not suit the model.
    """
    if not 1 <= budget < math.inf:
        raise PeftkitError(f"budget: {budget:g} is no number of values to store: choose 1 or more, such as 2e6.")
    method = cls.from_options(options) if cls.size is None else _Search(cls, cls.size, layout, budget, options).run()
    adapt.check(layout.model, [method], layout)
    return method, method.stored(layout) / budget - 1


class _Search:
    """The search for the value of the option `size`; values are known by their index, fewest stored numbers first."""

    def __init__(self, cls: type[Method], size: str, layout: Layout, budget: float, options: Mapping[str, Any]):
        self.cls, self.size, self.layout, self.budget = cls, size, layout, budget
        self.options = {key: value for key, value in options.items() if key != size}
        method = cls.from_options(self.options)
        self.values = None if isinstance(getattr(method, size), float) else method.sizes(layout)
        self.count = SHARES - 1 if self.values is None else len(self.values)
        self.refusal: PeftkitError | None = None

    def run(self) -> Method:
        """Return the nearest method: of a plain size, or with a pattern of sizes where that comes nearer."""
        below, above = (None if index is None else self.build(self.at(index)) for index in self.neighbours())
        found = [method for method in (below, above) if method is not None]
        if not found:
            assert self.refusal is not None
            raise self.refusal
        best = min(found, key=self.distance)
        if below is not None and above is not None and self.distance(best) > TOLERANCE * self.budget:
            best = min(best, self.refined(below), key=self.distance)
        return best if self.values is not None else self.rounded(best)

    def neighbours(self) -> tuple[int | None, int | None]:
        """Return the index of the largest size that stores less than the budget, and of the smallest that does not."""
        accepted: dict[int, int] = {}
        below, above, index = -1, self.count, 0
        while above - below > 1:
            stored = self.stored(index)
            if stored is not None:
                accepted[index] = stored
            # A refused size is too small as long as no smaller one was accepted, and too large otherwise.
            if below not in accepted if stored is None else stored < self.budget:
                below = index
            else:
                above = index
            # Doubled until a size is too large, halved from there on.
            index = min(2 * index + 1, above - 1) if above == self.count else (below + above) // 2
        return (below if below in accepted else None), (above if above in accepted else None)

    def at(self, index: int) -> Any:
        """Return the size with an index."""
        return (index + 1) / SHARES if self.values is None else self.values[index]

    def build(self, size: Any, **others: Any) -> Method:
        """Return the method with a size; `others` are further options."""
        return self.cls.from_options({**self.options, self.size: size, **others})

    def stored(self, index: int) -> int | None:
        """Return how many numbers a size stores, or None where the method or the model refuses it."""
        try:
            method = self.build(self.at(index))
            method.sites(self.layout)
        except PeftkitError as refusal:
            self.refusal = self.refusal or refusal
            return None
        return method.stored(self.layout)

    def distance(self, method: Method) -> float:
        """Return by how many numbers a method misses the budget."""
        return abs(method.stored(self.layout) - self.budget)

    def refined(self, method: Method) -> Method:
        """Return the method with one more than its size at some roles and modules, where it has a pattern of sizes."""
        option = f"{self.size}_pattern"
        if not hasattr(method, option):
            return method
        size, pattern = getattr(method, self.size), dict(getattr(method, option))
        sites = method.sites(self.layout)
        # Upper layers first: that is where methods that spread ranks by themselves put more of them.
        sites.sort(key=lambda site: math.inf if site.layer is None else site.layer, reverse=True)
        for kind in ("role", "path"):
            names = dict.fromkeys(getattr(site, kind) for site in sites)
            gains = self.gains(method, option, (name for name in names if name is not None and name not in pattern))
            chosen = nearest(gains, self.budget - method.stored(self.layout), exceed=kind == "path")
            pattern |= dict.fromkeys(chosen, size + 1)
            method = self.build(size, **{option: pattern})
        return method

    def gains(self, method: Method, option: str, names: Iterable[str]) -> dict[str, int]:
        """Return how much more is stored with one more than the size at each name alone, where that is accepted."""
        size, pattern, before = getattr(method, self.size), getattr(method, option), method.stored(self.layout)
        gains = {}
        for name in names:
            raised = self.build(size, **{option: {**pattern, name: size + 1}})
            try:
                raised.sites(self.layout)
            except PeftkitError:
                continue
            gains[name] = raised.stored(self.layout) - before
        return {name: gain for name, gain in gains.items() if gain > 0}

    def rounded(self, method: Method) -> Method:
        """Return the method with the fewest digits in its share that leave it as near, or nearer than 0.1 %."""
        size, allowed = getattr(method, self.size), max(self.distance(method), TOLERANCE / 10 * self.budget)
        for digits in range(1, 17):
            try:
                short = self.build(float(f"{size:.{digits}g}"))
            except PeftkitError:
                continue
            if self.distance(short) <= allowed:
                return short
        return method


def nearest(gains: Mapping[str, int], missing: float, exceed: bool) -> list[str]:
    """Choose names, the largest gains first, whose sum comes near `missing`; it is above that with `exceed` alone."""
    chosen = []
    for name in sorted(gains, key=lambda name: gains[name], reverse=True):
        if gains[name] <= missing:
            chosen.append(name)
            missing -= gains[name]
    left = [name for name in gains if name not in chosen]
    if exceed and left:
        last = min(left, key=lambda name: gains[name])
        chosen += [last] if gains[last] - missing < missing else []
    return chosen
