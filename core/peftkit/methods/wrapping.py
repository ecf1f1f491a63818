"""The base of methods that train the adapters of another one in a way of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import METHODS, Method

HOOKS = ("share", "prepare", "penalty", "after_backward", "after_step", "finish", "groups", "saved")
"""What a method that is wrapped leaves to the base: the other one's training would not call it."""


@dataclass(frozen=True, kw_only=True)
class Wrapping(Method):
    """A method of the adapters of another one, `of`, at that one's places."""

    port: ClassVar[str] = "that of its adapters"
    mergeable: ClassVar[bool] = False

    of: str | dict[str, Any] = "pfeiffer-adapter"
    """The method whose adapters these are: its name, or {name: options}."""

    def __post_init__(self) -> None:
        inner = self.inner
        hooks = [hook for hook in HOOKS if hook not in inner.idle_hooks]
        own = [hook for hook in hooks if getattr(type(inner), hook) is not getattr(Method, hook)]
        if own or len(inner.parts()) > 1 or inner.by_row or inner.keys_read or inner.needs or inner.splits_base:
            why = f"has a training of its own ({own[0]})" if own else "is no plain set of adapters"
            raise PeftkitError(f"{self.name}: of: the method '{inner.name}' {why}: choose another, such as lora.")

    @cached_property
    def inner(self) -> Method:
        """The method whose adapters are trained."""
        return named(self.of, self.name)

    def sites(self, layout: Layout) -> list[Site]:
        sites = self.inner.sites(layout)
        wrong = next((site.id for site in sites if site.stack is not None or site.role == "embedding"), None)
        if wrong is not None or not sites:
            what = "no adapters of its own" if wrong is None else f"adapters at {wrong}, which cannot be wrapped"
            raise PeftkitError(f"{self.name}: of: the method '{self.inner.name}' has {what}: choose another.")
        return sites

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return self.inner.select(layout, name, parameter)

    def notices(self, layout: Layout) -> list[str]:
        return self.inner.notices(layout)


def named(of: str | dict[str, Any], home: str) -> Method:
    """Return the method of an option `of` of the method `home`: a name, or {name: options}."""
    pairs = [(of, {})] if isinstance(of, str) else list(of.items())
    if len(pairs) != 1:
        raise PeftkitError(f"{home}: of: found {len(pairs)} methods; allowed: a name, or {{name: options}}.")
    ((name, options),) = pairs
    return METHODS[name].from_options(options or {})
