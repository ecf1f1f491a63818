"""What adapters add to a weight as low-rank pairs: read from them, summed exactly, and cut to a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peftkit.adaptation.merge import whole
from peftkit.errors import PeftkitError
from peftkit.layers.low_rank import LowRank
from peftkit.layout import Site
from peftkit.ports.adapter import Adapter
from peftkit.ports.linear import Delta


@dataclass(frozen=True)
class Change:
    """B A, added to the weight of a site."""

    site: Site
    down: Tensor
    """A [rank, in]."""
    up: Tensor
    """B [out, rank], with every factor in it."""

    @property
    def rank(self) -> int:
        """The inner size."""
        return self.down.shape[0]

    def of_module(self) -> Change:
        """Return the change of the site's whole module, in whose other rows B is zero."""
        rows = self.site.rows
        if rows is None:
            return self
        site = replace(self.site, rows=None, outputs=rows.stride * rows.count)
        return Change(site, self.down, whole(self.site, self.up))


def change_of(adapter: Adapter) -> Change | None:
    """Return what an adapter adds to the weight of the base where that is a low-rank pair; None where it is not.

    A start that was taken out of the weight is subtracted again, so that the pair has twice the adapter's rank. Raises
    PeftkitError where the rest of the weight was packed: it is not the base's packed weight less a pair then.
    """
    if not isinstance(adapter, Delta):
        return None
    site = adapter.site
    with torch.no_grad():
        pair = adapter.pair(torch.zeros(1, site.inputs))
    if pair is None:
        return None
    down, up = pair.down.detach().clone(), pair.up.detach() * pair.scale
    if not isinstance(adapter, LowRank) or adapter.factorise is None:
        return Change(site, down, up)
    if not adapter.exact:
        raise PeftkitError(
            f"the start of the adapter at {site.id} was taken out of its weight before that was packed, so that other "
            "codes are stored than the base's: no pair beside the base computes the same."
        )
    return Change(site, torch.cat([down, adapter.A0]), torch.cat([up, -adapter.B0], dim=1))


def stacked(changes: Sequence[Change]) -> Change:
    """Return the sum of changes of one site, exactly: rows of A and columns of B one after the other."""
    down, up = torch.cat([change.down for change in changes]), torch.cat([change.up for change in changes], dim=1)
    return Change(changes[0].site, down, up)


def bounded(change: Change) -> Change:
    """Return the same change with a rank that its site allows: where A is tall or B wide, their product is smaller."""
    inputs, outputs = change.down.shape[1], change.up.shape[0]
    if change.rank <= min(inputs, outputs):
        return change
    product = (change.up.double() @ change.down.double()).to(change.up.dtype)
    one = torch.eye(min(inputs, outputs), dtype=product.dtype)
    return Change(change.site, one, product) if inputs <= outputs else Change(change.site, product, one)


def truncated(change: Change, rank: int) -> tuple[Change, Tensor]:
    """Return the change of at most `rank` that is nearest (Frobenius), and all singular values, largest first.

    They come from the factors alone: B = Q R, A^T = P S, and the singular values of B A are those of R S^T.
    """
    left, left_rest = torch.linalg.qr(change.up.double())
    right, right_rest = torch.linalg.qr(change.down.double().T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    roots = values[:rank].sqrt()
    up, down = left @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ right.T
    return Change(change.site, down.to(change.down.dtype), up.to(change.up.dtype)), values
