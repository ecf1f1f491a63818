"""(IA)^3: scales of outputs [out, 1] and of inputs [1, in] as Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.ia3 import IA3, Scale
from peftkit.quantization.weight import shape

SUFFIX = ".ia3_l"


class ScaleConverter(Converter):
    """The parts of a fused module share a vector of its outputs, with ones where nothing is scaled."""

    def write(self, method: IA3, adapters: Mapping[str, Scale], model: nn.Module) -> tuple[Config, Tensors]:
        scales: Tensors = {}
        before: set[str] = set()
        for adapter in adapters.values():
            path, rows, mine = adapter.site.path, adapter.site.rows, adapter.scale.detach()
            if adapter.before:
                before.add(path)
                if rows is not None:
                    raise PeftkitError(
                        f"{method.name}: {adapter.site.id} is a part of a module, whose input Hugging Face peft scales "
                        "for all parts alike: use --format merged."
                    )
            elif rows is not None:
                whole = scales.get(path, torch.ones((shape(adapter.site.module) or (0, 0))[0], device=mine.device))
                mine = rows.put(whole, mine)
            scales[path] = mine
        config = self.config(target_modules=sorted(scales), feedforward_modules=sorted(before))
        return config, {f"{PREFIX}{p}{SUFFIX}": s[None] if p in before else s[:, None] for p, s in scales.items()}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        stray = next((key for key in tensors if not key.endswith(SUFFIX)), None)
        if stray is not None:
            raise PeftkitError(f"adapter_model.safetensors: the tensor '{stray}' is not part of an (IA)^3 adapter.")
        scales = {key.removeprefix(PREFIX).removesuffix(SUFFIX): tensor.float() for key, tensor in tensors.items()}
        before = tuple(path for path, scale in scales.items() if scale.shape[0] == 1 and scale.ndim == 2)
        after = tuple(path for path in scales if path not in before)
        method = self.method(targets=after, feedforward=before)
        return method, {f"{path}/scale": scale.flatten() for path, scale in scales.items()}


CONVERTERS.add("ia3", ScaleConverter(IA3, "IA3"))
