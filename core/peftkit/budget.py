"""Sizes by budget: the rank, width, length or share with which a method stores a given number of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from peftkit.adaptation import check_methods, count_stored
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, matched
from peftkit.method import Method

TOLERANCE = 0.01
"""The relative deviation from the budget above which single modules get a size of their own."""
SHARES = 1 << 32
"""Shares are looked for among the fractions with this denominator."""


def solve(cls: type[Method], layout: Layout, budget: float, options: Mapping[str, Any]) -> tuple[Method, float]:
    """Return the method with the size that stores nearest to `budget` numbers, and by what share of it it is off.

    `options` are the method's others; a size among them is replaced. Sizes that the model refuses are left out. Where
    the budget lies between two sizes, the nearer is off by more than 1 % and the method can set sizes by module
    (`<size>_pattern`), some modules get one more than the smaller size: those whose sum is nearest, of equal ones
    role by role from the top layer down. A method without a size comes back as the options make it; where even the
    smallest size stores more, or the largest less, that size is the answer, and the deviation tells (negative: less
    than the budget). Weights are not read, so that a model on the meta device will do.

    Raises PeftkitError for a budget below one, wrong options, and a method that does not suit the model.
    """
    if not 1 <= budget < math.inf:
        raise PeftkitError(f"budget: {budget:g} is no number of values to store: choose 1 or more, such as 2e6.")
    method = cls.from_options(options) if cls.size is None else _Search(cls, cls.size, layout, budget, options).run()
    check_methods(layout.model, [method], layout)
    return method, count_stored(method, layout) / budget - 1


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
        neighbours = [method for method in (below, above) if method is not None]
        if not neighbours:
            assert self.refusal is not None
            raise self.refusal
        best = min(neighbours, key=self.distance)
        if below is not None and above is not None and self.distance(best) > TOLERANCE * self.budget:
            best = min(best, self.refined(below), key=self.distance)
        return best if self.values is not None else self.rounded(best)

    def neighbours(self) -> tuple[int | None, int | None]:
        """Return the index of the largest size that stores less than the budget, and of the smallest that does not."""
        accepted: dict[int, int] = {}
        below, above, index = -1, self.count, 0
        while above - below > 1:
            count = self.measure(self.at(index))
            if count is not None:
                accepted[index] = count
            # A refused size is too small as long as no smaller one was accepted, and too large otherwise.
            if below not in accepted if count is None else count < self.budget:
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

    def measure(self, size: Any, **others: Any) -> int | None:
        """Return how many numbers a size stores, or None where the method or the model refuses it."""
        try:
            method = self.build(size, **others)
            method.sites(self.layout)
        except PeftkitError as refusal:
            self.refusal = self.refusal or refusal
            return None
        return count_stored(method, self.layout)

    def distance(self, method: Method) -> float:
        """Return by how many numbers a method misses the budget."""
        return abs(count_stored(method, self.layout) - self.budget)

    def refined(self, method: Method) -> Method:
        """Return the method with one more than its size at some roles and modules, where it has a pattern of sizes."""
        option = f"{self.size}_pattern"
        given = getattr(method, option, None)
        if given is None:
            return method
        size = getattr(method, self.size) + 1
        modules: dict[str, list[Site]] = {}
        sites = method.sites(self.layout)
        roles = list(dict.fromkeys(site.role for site in sites))
        # Upper layers first: that is where methods that spread ranks by themselves put more of them.
        for site in sorted(sites, key=lambda site: (roles.index(site.role), -(site.layer or 0))):
            modules.setdefault(site.path, []).append(site)
        gains = self.gains(method, option, modules)
        chosen = nearest(gains, self.budget - count_stored(method, self.layout))
        whole = [role for role in roles if role and all(s.path in chosen for s in sites if s.role == role)]
        single = [path for path in chosen if any(site.role not in whole for site in modules[path])]
        return self.build(getattr(method, self.size), **{option: {**given, **dict.fromkeys([*whole, *single], size)}})

    def gains(self, method: Method, option: str, modules: Mapping[str, Sequence[Site]]) -> dict[str, int]:
        """Return how much more is stored with one more than the size at each module alone, where that is accepted.

        It is measured once for modules of one shape. Those to which the options give a size of their own are left out.
        """
        size, given, before = getattr(method, self.size), getattr(method, option), count_stored(method, self.layout)
        measured: dict[Any, int] = {}
        gains = {}
        for path, sites in modules.items():
            if any(matched(key, site) for key in given for site in sites):
                continue
            shape = tuple((site.inputs, site.outputs) for site in sites)
            if shape not in measured:
                measured[shape] = (self.measure(size, **{option: {**given, path: size + 1}}) or before) - before
            gains[path] = measured[shape]
        return {path: gain for path, gain in gains.items() if gain > 0}

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


def nearest(gains: Mapping[str, int], missing: float) -> list[str]:
    """Choose the names whose gains have the sum next to what is missing; of equal gains the first names."""
    groups: dict[int, list[str]] = {}
    for name, gain in gains.items():
        groups.setdefault(gain, []).append(name)
    reached = [1]  # after each group, bit i tells whether the sum i can be had
    for gain, names in groups.items():
        sums = reached[-1]
        for _ in names:
            sums |= sums << gain
        reached.append(sums)
    limit = int(missing) + 1
    total = (reached[-1] & ((1 << limit) - 1)).bit_length() - 1
    over = reached[-1] >> limit
    higher = limit + (over & -over).bit_length() - 1
    if over and higher - missing < missing - total:
        total = higher
    chosen = []
    for (gain, names), before in reversed([*zip(groups.items(), reached[:-1], strict=True)]):
        count = next(n for n in range(len(names), -1, -1) if n * gain <= total and before >> (total - n * gain) & 1)
        chosen += names[:count]
        total -= count * gain
    return chosen
