"""A change of a bias with gates, which choose what of it stays."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.adapter import Call
from peftkit.ports.linear import LinearAdapter


class GatedBias(LinearAdapter):
    """A change v [out] of the bias and gates a [1] or [out]; in the end v [k] at the `places` [k]."""

    kept: Tensor
    fixed: Tensor
    places: Tensor

    def __init__(self, site: Site, by_element: bool):
        super().__init__(site)
        self.v = nn.Parameter(torch.zeros(site.outputs))
        self.a = nn.Parameter(torch.zeros(site.outputs if by_element else 1))
        self.register_buffer("kept", torch.ones_like(self.a, dtype=torch.bool))
        self.register_buffer("fixed", torch.zeros(1, dtype=torch.bool))
        self.is_cut = False

    def change(self) -> Tensor:
        """Return what is added to the bias [out]."""
        if self.is_cut:
            return self.v.new_zeros(self.site.outputs).index_put((self.places.long(),), self.v)
        return self.v * torch.where(self.fixed, self.kept.to(self.v.dtype), self.a.sigmoid())

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y + self.change().to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight, self.change() if bias is None else bias + self.change()

    def fix(self, mask: Tensor, rewinds: bool) -> None:
        """Keep what the mask over the gates chooses, from zero where it `rewinds`."""
        self.kept.copy_(mask)
        self.fixed.fill_(True)
        if rewinds:
            self.v.zero_()

    def cut(self) -> None:
        """Leave the kept elements alone."""
        places = self.kept.expand(len(self.v)).nonzero().flatten()
        self._become(places.int(), self.v.detach()[places])

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        places = tensors.get("places")
        if places is not None:
            self._become(torch.zeros(len(places), dtype=torch.int32), torch.zeros(len(places)))

    def _become(self, places: Tensor, values: Tensor) -> None:
        device, self.is_cut = self.v.device, True
        self.register_buffer("places", places.to(device))
        self.v = nn.Parameter(values.to(device))
        for key in ("a", "kept", "fixed"):
            setattr(self, key, None)
