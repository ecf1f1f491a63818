"""Layer norm tuning: the trained weights and biases themselves, as Hugging Face peft has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.layernorm_tuning import LayerNormTuning

KEY = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.ln_tuning_layers\.(?:default\.)?(weight|bias)")


class NormConverter(Converter):
    """The method has no adapters: its tensors are the model's own."""

    def write(self, method: LayerNormTuning, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        layout = Layout(model)
        paths = sorted(method.paths(layout))
        tensors = {
            f"{PREFIX}{path}.ln_tuning_layers.{key}": parameter.detach()
            for path in paths
            for key, parameter in layout.modules[path].named_parameters(recurse=False)
        }
        return self.config(target_modules=paths), tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state = {}
        for key, tensor in tensors.items():
            match = KEY.fullmatch(key)
            if match is None:
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not of a normalisation layer.")
            state[f"own/{match[1]}.{match[2]}"] = tensor.float()
        paths = {key.removeprefix("own/").rpartition(".")[0] for key in state}
        inside = {index for index, block in enumerate(layout.blocks) if any(p.startswith(block + ".") for p in paths)}
        return self.method(layers=None if paths >= set(layout.norms()) else tuple(sorted(inside))), state


CONVERTERS.add("layernorm-tuning", NormConverter(LayerNormTuning, "LN_TUNING"))
