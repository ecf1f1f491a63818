"""FISH Mask trains the weights with the largest Fisher information (Sung et al. 2021, arXiv:2111.09839)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from peftkit.layers.probing import Probed, examples, fisher
from peftkit.layers.sparse import entries, largest
from peftkit.layout import Site
from peftkit.method import Targeted, Targets
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class FishMask(Targeted, name="fishmask"):
    """W + a sparse change whose values start at zero, at the weights with the largest empirical Fisher information.

    F = mean over examples of the squared gradient of log p(y | x), one example at a time: the square of a batch's mean
    gradient is another quantity. It is measured once, on the batches given to `prepare`, and the share `density` of
    all adapted weights with the largest F, over all sites together, is trained. Where no batches were given, the
    positions are spread evenly over each weight. The official code always trains the new classification head too,
    which a language model does not have.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Sung et al. 2021, arXiv:2111.09839"
    summary: ClassVar[str] = (
        "Trains the few weights whose squared gradients on the data are largest, chosen once before training. "
        "Their positions and changes alone are saved."
    )
    default_learning_rate: ClassVar[float] = 0.056
    size: ClassVar[str | None] = "density"

    density: Annotated[float, Gt(0), Lt(0.5)] = 0.005
    """Share of the adapted weights that is trained."""
    samples: Annotated[int, Ge(1)] = 1024
    """Most examples on which the information is measured."""
    targets: Targets = "linear"

    def build(self, site: Site) -> Adapter:
        return Probed(site, entries(site, self.density))

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        probed = cast(Mapping[str, Probed], adapters)
        count = sum(len(adapter.values) for adapter in probed.values())
        scores = self.scores(model, probed, batches)
        if scores is not None:
            for key, mask in largest(scores, count).items():
                probed[key].choose(mask)

    def scores(
        self, model: nn.Module, adapters: Mapping[str, Probed], batches: Iterable[Any]
    ) -> dict[str, Tensor] | None:
        """Return what entries are chosen by [out, in], the largest over all sites; None where there is no example."""
        return fisher(model, adapters, examples(batches, self.samples))
