"""KronA^B_res is the Kronecker product beside a block, with a scaled residual (Edalati et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.layout import Site
from peftkit.methods.krona_b import KronAB, KroneckerBeside
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class KronABRes(KronAB, name="krona-b-res"):
    """The sublayer f gives f(x) + s (A (x) B) x + r x with r [1] trained; the rest is as in `krona-b`.

    r starts at zero, so that the start is the base: at one, a second residual would change every layer.
    """

    summary: ClassVar[str] = (
        "Runs a Kronecker product of two small trainable matrices beside each feed-forward block, and adds the input "
        "times a trained number. It stays beside the model."
    )
    default_learning_rate: ClassVar[float] = 0.1

    def build(self, site: Site) -> Adapter:
        return KroneckerBeside(site, self, residual=True)
