"""A method's class with another one in front of it, which changes some of what it does."""

from __future__ import annotations

from dataclasses import fields, make_dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

from peftkit.method import Method

Made = TypeVar("Made", bound=Method)


def in_front(first: type[Made], method: Method, home: str, rate: float | None = None, **options: Any) -> Made:
    """Return `method` with the class `first` in front of its own and that one's `options`.

    It is written down as a part of `home`. `rate` is its default learning rate, by default that of `method`, which the
    class keeps as `behind`.
    """
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    found = rate is None and method.rate_searched
    made = _class(first, type(method), f"{home}/{method.name}", rate or method.default_learning_rate, found)
    return cast(Any, made)(**{**values, **options})


@cache
def _class(first: type[Method], cls: type[Method], name: str, rate: float, searched: bool) -> type[Method]:
    made = make_dataclass(f"{first.__name__}{cls.__name__}", [], bases=(first, cls), frozen=True, kw_only=True)
    own: dict[str, Any] = {"name": name, "default_learning_rate": rate, "rate_searched": searched, "behind": cls}
    for key, value in own.items():
        setattr(made, key, value)
    return cast("type[Method]", made)


class Behind:
    """What a class in front may ask of the one behind it."""

    behind: ClassVar[type[Method]]

    def plain(self) -> Method:
        """Return the method without the class in front."""
        return self.behind(**{field.name: getattr(self, field.name) for field in fields(self.behind)})
