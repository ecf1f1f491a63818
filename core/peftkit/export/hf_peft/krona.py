"""KronA: whole Kronecker factors of LoKr as Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.krona import KronA, Kronecker

NAMES = {"lokr_w1": "A", "lokr_w2": "B"}


class KroneckerConverter(Converter):
    """The scale goes into A; a rank as large as the matrices means there that both are whole."""

    def write(self, method: KronA, adapters: Mapping[str, Kronecker], model: nn.Module) -> tuple[Config, Tensors]:
        tensors: Tensors = {}
        largest = 1
        for adapter in adapters.values():
            if adapter.site.rows is not None or not isinstance(adapter.site.module, nn.Linear):
                raise PeftkitError(
                    f"{method.name}: {adapter.site.id} is part of a fused module or no plain linear, which Hugging "
                    "Face peft does not take for this method: use --format merged."
                )
            tensors[f"{PREFIX}{adapter.site.path}.lokr_w1"] = adapter.A.detach() * method.scale
            tensors[f"{PREFIX}{adapter.site.path}.lokr_w2"] = adapter.B.detach()
            largest = max(largest, *adapter.B.shape)
        config = self.config(
            r=largest,
            alpha=largest,
            decompose_both=False,
            decompose_factor=method.factor or -1,
            target_modules=sorted(adapter.site.path for adapter in adapters.values()),
        )
        return config, tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state, paths, factor = {}, set(), int(config.get("decompose_factor", -1))
        for key, tensor in tensors.items():
            path, _, name = key.removeprefix(PREFIX).rpartition(".")
            if name not in NAMES:
                raise PeftkitError(
                    f"adapter_model.safetensors: '{key}' is of a factorised matrix; only whole ones can be read."
                )
            paths.add(path)
            state[f"{path}/{NAMES[name]}"] = tensor.float()
        method = self.method(
            factor=factor if factor > 0 else None,
            scale=float(config["alpha"]) / config["r"],
            targets=tuple(sorted(paths)),
        )
        return method, state


CONVERTERS.add("krona", KroneckerConverter(KronA, "LOKR"))
