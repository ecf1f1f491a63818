"""DoRA: a pair of LoRA's and the magnitudes of the rows beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Tensors
from peftkit.export.hf_peft.low_rank import LowRankConverter
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.dora import DoRA, row_squares
from peftkit.methods.lora import LoRA
from peftkit.quantization.weight import dense

MAGNITUDE = ".lora_magnitude_vector"


class DecomposedConverter(LowRankConverter):
    """Rows of a fused module that no adapter has keep the length of the frozen weight's."""

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == self.peft_type and bool(config.get("use_dora"))

    def write(self, method: LoRA, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        config, tensors = super().write(method, adapters, model)
        for adapter in adapters.values():
            key, rows, mine = f"{PREFIX}{adapter.site.path}{MAGNITUDE}", adapter.site.rows, adapter.m.detach()
            if rows is not None:
                whole = tensors.get(key)
                mine = rows.put(row_squares(dense(adapter.site.module)).sqrt() if whole is None else whole, mine)
            tensors[key] = mine
        return {**config, "use_dora": True}, tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        pairs = {key: tensor for key, tensor in tensors.items() if MAGNITUDE not in key}
        method, state = super().read({**config, "use_dora": False}, pairs, layout)
        for key in set(tensors) - set(pairs):
            state[f"{key.partition(MAGNITUDE)[0].removeprefix(PREFIX)}/m"] = tensors[key].float().flatten()
        return method, state


CONVERTERS.add("dora", DecomposedConverter(DoRA, "LORA"))
