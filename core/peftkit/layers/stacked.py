"""Adapters of the experts' weights in a frozen stack, which the model multiplies in a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import Delta, LinearAdapter
from peftkit.quantization.stack import Reading, matrix, standing, standing_in

Views = Mapping[str, tuple[Tensor, ...]]
"""The tensors of each expert's adapter, by name."""


class Stacked(Adapter):
    """An adapter for each expert's weight, all built alike, whose tensors are stacked: [experts, ...].

    What they make of the weights stands in the place of the stack while the module of the experts runs, and is exact
    however the experts are computed. Of a stack that is a parameter, one of the same size is made in each pass and kept
    for the backward pass; of a packed one what is read is made, and once more in the backward pass.
    """

    def __init__(self, site: Site, build: Callable[[Site], Adapter]):
        super().__init__(site)
        members = [cast(LinearAdapter, build(one)) for one in site.each()]
        first = members[0]
        self.factors = first.factors
        for key, own in first.named_parameters():
            parts = [member.get_parameter(key).detach() for member in members]
            self.register_parameter(key, nn.Parameter(torch.stack(parts), requires_grad=own.requires_grad))
            # A stack of vectors has two dimensions, and what is in it is a vector still.
            if own.ndim < 2 or key in first.undecayed:
                self.undecayed = (*self.undecayed, key)
        for key, _ in first.named_buffers():
            parts = [member.get_buffer(key) for member in members]
            self.register_buffer(key, torch.stack(parts), key not in first._non_persistent_buffers_set)
        for member in members:
            _clear(member)
        self.__dict__["members"] = members

    @property
    def members(self) -> list[LinearAdapter]:
        """The adapters of the experts, which have their tensors while one is `bound` and no longer."""
        return self.__dict__["members"]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The stacked tensors by name, those that are not saved too."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def exported(self) -> tuple[Tensor, Tensor]:
        """Return the plain pairs A [experts, rank, in] and B [experts, out, rank] of members that have such."""
        pairs = []
        for index, views in self._each():
            with self.bound(index, views) as member:
                pairs.append(cast(Any, member).exported())
        downs, ups = zip(*pairs, strict=True)
        return torch.stack(downs), torch.stack(ups)

    @contextmanager
    def bound(self, index: int, tensors: Mapping[str, Tensor]) -> Iterator[LinearAdapter]:
        """Give a member these tensors; what it puts in the place of one is written into it."""
        member = self.members[index]
        member.__dict__["shared"], member.training = self.shared, self.training
        for own in (member._parameters, member._buffers):
            cast("dict[str, Any]", own).update({key: tensors[key] for key in own})
        try:
            yield member
            for key, now in member._buffers.items():
                if now is not None and now is not tensors[key]:
                    tensors[key].copy_(now)
        finally:
            _clear(member)

    @torch.no_grad()
    def start(self) -> None:
        for index, tensors in self._each():
            with self.bound(index, tensors) as member:
                member.start()

    @torch.no_grad()
    def settle(self) -> None:
        for index, tensors in self._each():
            with self.bound(index, tensors) as member:
                member.settle()

    def _each(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        views = self.views()
        return ((index, _of(views, index)) for index in range(len(self.members)))

    def views(self) -> Views:
        """Return the tensors of each member by name, in the memory of the stacked ones."""
        return {key: tensor.unbind(0) for key, tensor in self.tensors.items()}

    def forward(self, call: Call, x: Tensor) -> Tensor:
        if self.context.routing is not None:
            raise PeftkitError(f"the adapters of experts at {self.site.id} cannot share a batch with others.")
        module, name = self.site.module, str(self.site.stack)
        now = standing_in(module, name)
        if isinstance(now, Reading):
            stack: Tensor | Reading = now.over(partial(self._read, self.views()))
        else:
            stack, _ = self.merge(now, None)
        with standing(module, name, stack):
            return call(x)

    def _read(self, views: Views, read: Callable[[], Tensor], index: int | None) -> Tensor:
        """Return what one weight of a packed stack becomes, or the stack, in its own shape.

        Of a change that is added nothing of a weight's size is kept on the way; any other is made anew.
        """

        def make() -> Tensor:
            weight = read()
            if index is None:
                return self.merge(weight, None)[0]
            made = self.merge_one(weight.T if self.site.transposed else weight, index, views)
            return made.T.contiguous() if self.site.transposed else made

        if _adds(self.members[0]) or not torch.is_grad_enabled():
            return make()
        return cast(Tensor, checkpoint(make, use_reentrant=False, preserve_rng_state=False))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the stack that computes the same, in the shape and dtype of `weight`."""
        turned = self.site.transposed
        if self.members[0].batched:
            with self.bound(0, self.tensors) as member:
                made = _made(member, weight.transpose(1, 2) if turned else weight)
        else:
            views = self.views()
            made = torch.stack(
                [self.merge_one(matrix(weight, index, turned), index, views) for index in range(len(weight))]
            )
        return made.transpose(1, 2).contiguous() if turned else made, bias

    def merge_one(self, weight: Tensor, index: int, views: Views | None = None) -> Tensor:
        """Return what the weight [out, in] of one expert becomes, in its dtype."""
        with self.bound(index, _of(views or self.views(), index)) as member:
            return _made(member, weight)


def build_at(site: Site, build: Callable[[Site], Adapter]) -> Adapter:
    """Build the adapter of a site, which for a stack is one for each of its weights."""
    return build(site) if site.stack is None else Stacked(site, build)


def _made(member: LinearAdapter, weight: Tensor) -> Tensor:
    if _adds(member):
        return weight + cast(Delta, member).delta(weight).to(weight.dtype)
    return member.merge(weight, None)[0].to(weight.dtype)


def _adds(member: LinearAdapter) -> bool:
    return isinstance(member, Delta) and type(member).merge is Delta.merge


def _of(views: Views, index: int) -> dict[str, Tensor]:
    return {key: parts[index] for key, parts in views.items()}


def _clear(member: nn.Module) -> None:
    """Take the tensors of a member away: parts of others can be neither copied nor moved."""
    for own in (member._parameters, member._buffers):
        own.update(dict.fromkeys(own))
