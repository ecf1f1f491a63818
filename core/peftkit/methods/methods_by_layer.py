"""Any method in any range of layers (the search space of Chen et al. 2023, arXiv:2301.01821)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, Method
from peftkit.methods.somewhere import between, somewhere

RANGE = re.compile(r"\s*(\d{1,5})\s*(-\s*(\d{1,5})?)?\s*")
Range = tuple[int, int | None]


@dataclass(frozen=True, kw_only=True)
class MethodsByLayer(Method, name="methods_by_layer"):
    """Each range of layers has its methods, which have their places, options and rates in these layers alone.

    `methods_by_layer: {layers: {0-3: pfeiffer-adapter, 4-: [lora, prefix-tuning]}}`. Ranges follow one another from
    layer 0 to the top without gap or overlap; an empty list leaves layers as they are.
    """

    port: ClassVar[str] = "those of its methods"
    family: ClassVar[str] = "combination"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2301.01821"
    summary: ClassVar[str] = (
        "Gives each range of layers methods of its own. Every method that has its places in layers can be one."
    )
    default_learning_rate: ClassVar[float] = 0.018
    rate_searched: ClassVar[bool] = False

    layers: dict[str, Any] = field(default_factory=lambda: {"0-": "lora"})
    """Methods (a name, {name: options}, or a list of those) by range of layers: `0-3`, `4`, or `5-` up to the top."""

    def __post_init__(self) -> None:
        check_ranges(list(self.layers))
        # Its own to say: that depends on what it is made of.
        self.__dict__["mergeable"] = all(part.mergeable for part in self.parts())

    @cached_property
    def chosen(self) -> list[tuple[Range, list[Method]]]:
        """The methods of each range."""
        return [
            (parse_range(text), [_method(name, given) for name, given in _pairs(text, value)])
            for text, value in self.layers.items()
        ]

    @property
    def finished(self) -> Method:
        done = [[{m.finished.name: m.finished.options()} for m in methods] for _, methods in self.chosen]
        return replace(self, layers=dict(zip(self.layers, done, strict=True)))

    def parts(self) -> tuple[Method, ...]:
        last = self.chosen[-1][0][1]
        parts = []
        for (first, end), methods in self.chosen:
            for part in (part for method in methods for part in method.parts()):
                rated = part if self.learning_rate is None or part.learning_rate is not None else self._rated(part)
                parts.append(somewhere(rated, Covered(first, end, last), self.name))
        return tuple(parts)

    def _rated(self, part: Method) -> Method:
        return replace(part, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class Covered:
    """The layers of one range, where all ranges together end at the top of the model."""

    first: int
    end: int | None
    last: int | None

    def __call__(self, layout: Layout) -> Any:
        top = len(layout.blocks) - 1
        if self.last is not None and self.last != top:
            what = f"the layers {self.last + 1} to {top} have none" if self.last < top else f"it ends with layer {top}"
            raise PeftkitError(
                f"methods_by_layer: the ranges end at layer {self.last}, and {what}: let the last one end at {top}, or "
                "leave its end open, as in '4-'."
            )
        return between(self.first, self.end)(layout)


def parse_range(text: str) -> Range:
    """Return the first and the last layer of a range, None for the top."""
    match = RANGE.fullmatch(text)
    first = int(match[1]) if match else 0
    last = None if match and match[2] and not match[3] else int(match[3] or match[1]) if match else 0
    if not match or (last is not None and last < first):
        raise PeftkitError(f"'{text}' is no range of layers: write one such as 0-3, 4, or 5- up to the top.")
    return first, last


def check_ranges(texts: list[str]) -> None:
    """Raise PeftkitError, which begins with the range in question, for what is no range, a gap or an overlap."""
    if not texts:
        raise PeftkitError("no range of layers is given: write one such as '0-'.")
    ranges = [parse_range(text) for text in texts]
    if ranges[0][0] != 0:
        raise PeftkitError(
            f"'{texts[0]}': the first range begins at layer {ranges[0][0]}: begin at 0, with [] for none."
        )
    for (before, text), ((_, end), (first, _)) in zip(pairwise(texts), pairwise(ranges), strict=True):
        wanted = None if end is None else end + 1
        if wanted is None:
            raise PeftkitError(f"'{text}': it follows '{before}', which ends at the top: give that one an end.")
        if first != wanted:
            fault = f"overlaps '{before}'" if first < wanted else f"leaves {_span(wanted, first - 1)} without methods"
            raise PeftkitError(f"'{text}': it {fault}: begin it at {wanted}.")


def _span(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"the layers {first} to {last}"


def _pairs(text: str, value: Any) -> Iterator[tuple[str, Any]]:
    for item in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(item, str):
            yield item, {}
        elif isinstance(item, dict) and len(item) == 1:
            yield from item.items()
        else:
            raise PeftkitError(f"'{text}': found {item!r}; allowed: a method's name, {{name: options}}, or a list.")


def _method(name: str, options: Any) -> Method:
    return METHODS[name].from_options(options or {})
