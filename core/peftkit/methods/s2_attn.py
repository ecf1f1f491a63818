"""Shifted sparse attention trains on long texts within groups of tokens (Chen et al. 2023, arXiv:2309.12307)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.wrapping import named
from peftkit.ports.adapter import Adapter
from peftkit.ports.attention import Attend, AttentionAdapter
from peftkit.ports.context import Spans


@dataclass(frozen=True, kw_only=True)
class ShiftedSparseAttention(Method, name="s2-attn"):
    """In training tokens attend within groups of G; half of the heads have theirs G / 2 farther on. It trains nothing.

    Query i of the first half of the heads sees key j <= i where floor(i / G) = floor(j / G), one of the second half
    where floor((i - G/2) / G) = floor((j - G/2) / G). The official code rolls the second half by G / 2, so that its
    last group holds the end and the beginning of a text: here that group is cut, as its early tokens would see late
    ones. Groups go by the position in the row, soft prompts counted, and the last one may be short. Validation,
    generation and merged models attend to all, and so do the losses of `mezo`, measured as in validation. `of` is the
    method that is trained meanwhile. Both ways are computed for all heads, which at G = T / 4 is half the products of
    full causal attention.
    """

    port: ClassVar[str] = "attention, and that of its method"
    family: ClassVar[str] = "long context"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2309.12307"
    summary: ClassVar[str] = (
        "Has any method train with attention inside short groups of tokens, shifted for half of the heads. Afterwards "
        "the model attends to all of a text."
    )
    default_learning_rate: ClassVar[float] = 0.018
    rate_searched: ClassVar[bool] = False

    of: str | dict[str, Any] = "lora"
    """The method that is trained: its name, or {name: options}."""
    group: Annotated[int, Ge(2)] = 2048
    """Tokens of a group, G: a quarter of the length that is trained at in the paper; rows up to G / 2 see all."""

    def __post_init__(self) -> None:
        # Its own to say: that depends on what it is made of.
        self.__dict__["mergeable"] = all(part.mergeable for part in self.inner.parts())

    @cached_property
    def inner(self) -> Method:
        """The method that is trained."""
        method = named(self.of, self.name)
        if method.needs:
            raise PeftkitError(f"{self.name}: of: the method '{method.name}' trains a stored base: choose another.")
        rated = self.learning_rate is None or method.learning_rate is not None
        return method if rated else replace(method, learning_rate=self.learning_rate)

    def _of(self, method: Method) -> ShiftedSparseAttention:
        return self if method == self.inner else replace(self, of={method.name: method.options()})

    def with_tokenizer(self, tokenizer: Any) -> Method:
        return self._of(self.inner.with_tokenizer(tokenizer))

    @property
    def finished(self) -> Method:
        return self._of(self.inner.finished)

    def parts(self) -> tuple[Method, ...]:
        return (*self.inner.parts(), Shifted(group=self.group))


@dataclass(frozen=True, kw_only=True)
class Shifted(Method):
    """The attention of the combination, which has no tensors."""

    name: ClassVar[str] = "s2-attn/attention"
    port: ClassVar[str] = "attention"
    default_learning_rate: ClassVar[float] = ShiftedSparseAttention.default_learning_rate

    group: int

    def sites(self, layout: Layout) -> list[Site]:
        sites = layout.attention()
        if any(site.heads is not None and site.heads.own for site in sites):
            raise PeftkitError(
                f"{ShiftedSparseAttention.name}: this {layout.kind} model computes attention in code of its own, whose "
                "heads cannot be told apart: train the method alone."
            )
        return sites

    def build(self, site: Site) -> Adapter:
        return GroupAttention(site, self.group)


class GroupAttention(AttentionAdapter):
    """Attention within groups of tokens while the model trains."""

    training_alone: ClassVar[bool] = True

    def __init__(self, site: Site, group: int):
        super().__init__(site)
        self.group, self.later = group, -(-group // 2)

    @torch.compiler.disable()
    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if not self.training or (self.longest or q.shape[2]) <= self.later:
            return attend(q, k, v, mask)
        with self.within(Spans(self.group)):
            y = attend(q, k, v, mask)
        with self.within(Spans(self.group, self.later)):
            shifted = attend(q, k, v, mask)
        heads = q.shape[1] // 2
        return torch.cat([y[:, :, :heads], shifted[:, :, heads:]], 2)
