"""Tuning of the normalisation layers alone (Zhao et al. 2023, arXiv:2312.11420)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, parse_layers
from peftkit.method import Learns, Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.low_rank import PREFIX

KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.ln_tuning_layers\.(?:default\.)?(weight|bias)")


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
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ({"layers": "1"},)
    learns: ClassVar[Learns] = Learns(loss=4.0, steps=80, learning_rate=5e-2)

    layers: tuple[int, ...] | str | None = None
    """Layers whose normalisations are trained, such as 0-3,8; by default all, with those outside the blocks."""

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return name.rpartition(".")[0] in self._paths(layout)

    def count(self, layout: Layout) -> int:
        return sum(p.numel() for path in self._paths(layout) for p in layout.modules[path].parameters(recurse=False))

    def _paths(self, layout: Layout) -> set[str]:
        layers = parse_layers(self.layers)
        if layers is None:
            return set(layout.norms())
        blocks = tuple(f"{block}." for index, block in enumerate(layout.blocks) if index in layers)
        if not blocks:
            raise PeftkitError(f"{self.name}: layers {list(layers)} name none of the {len(layout.blocks)} layers.")
        return {path for path in layout.norms() if path.startswith(blocks)}

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        layout = Layout(model)
        paths = sorted(self._paths(layout))
        tensors = {
            f"{PREFIX}{path}.ln_tuning_layers.{key}": parameter.detach()
            for path in paths
            for key, parameter in layout.modules[path].named_parameters(recurse=False)
        }
        config = {"peft_type": "LN_TUNING", "task_type": "CAUSAL_LM", "target_modules": paths, "inference_mode": True}
        return config, tensors

    @classmethod
    def reads_hf_peft(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == "LN_TUNING"

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        state = {}
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not of a normalisation layer.")
            state[f"own/{match[1]}.{match[2]}"] = tensor.float()
        paths = {key.removeprefix("own/").rpartition(".")[0] for key in state}
        inside = {index for index, block in enumerate(layout.blocks) if any(p.startswith(block + ".") for p in paths)}
        method = cls(layers=None if paths >= set(layout.norms()) else tuple(sorted(inside)))
        return method, state
