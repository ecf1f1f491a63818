"""Tuning of the normalisation layers alone (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, own_parameters, parse_layers
from peftkit.method import Method


@dataclass(frozen=True, kw_only=True)
class LayerNormTuning(Method, name="layernorm-tuning"):
    """The weight [width], and the bias [width] where there is one, of each normalisation layer is trained.

    That is (2 L + 1) width numbers in a Llama of L layers. It starts as the base. The paper trains the layers inside
    the blocks; Hugging Face peft and this method also train the one behind them.
    """

    port: ClassVar[str] = "own parameters"
    family: ClassVar[str] = "selection"
    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    summary: ClassVar[str] = (
        "Trains the weights and biases of the normalisation layers. These are a few vectors in each block, "
        "and nothing else moves."
    )
    default_learning_rate: ClassVar[float] = 0.18
    rate_falls_with_width: ClassVar[bool] = False

    layers: tuple[int, ...] | str | None = None
    """Layers whose normalisations are trained, such as 0-3,8; by default all, with those outside the blocks."""

    def sites(self, layout: Layout) -> list[Site]:
        if not any(self.select(layout, name, parameter) for name, parameter in own_parameters(layout.model)):
            raise PeftkitError(f"{self.name}: this {layout.kind} model has no norm with weights of its own.")
        return []

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return name.rpartition(".")[0] in self.paths(layout)

    def paths(self, layout: Layout) -> set[str]:
        """Return the paths of the normalisation layers that are trained."""
        layers = parse_layers(self.layers)
        if layers is None:
            return set(layout.norms())
        blocks = tuple(f"{block}." for index, block in enumerate(layout.blocks) if index in layers)
        if not blocks:
            raise PeftkitError(f"{self.name}: layers {list(layers)} name none of the {len(layout.blocks)} layers.")
        return {path for path in layout.norms() if path.startswith(blocks)}
