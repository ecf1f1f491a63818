"""AdaLoRA: triplets of singular vectors and values as Hugging Face peft has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.export.hf_peft.low_rank import join
from peftkit.layers.triplets import EPSILON, Triplets
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.adalora import AdaLoRA

FLAGS = ("use_dora", "modules_to_save", "fan_in_fan_out", "layer_replication", "megatron_config", "lora_bias")
NAMES = {"A": "Q", "B": "P", "E": "l"}
"""Their tensors and ours."""


class TripletsConverter(Converter):
    """The scale and l go into P, so that the parts of a fused module become one set of triplets.

    lora_E undoes the reader's own scale; modules without a triplet are left out.
    """

    def write(self, method: AdaLoRA, adapters: Mapping[str, Triplets], model: nn.Module) -> tuple[Config, Tensors]:
        pairs = {
            key: (a.Q.detach(), a.P.detach() * (a.l.detach() * a.scale), a.site)
            for key, a in adapters.items()
            if len(a.l)
        }
        modules = join(pairs)
        if not modules:
            raise PeftkitError("every triplet is closed, and Hugging Face peft has no adapter of rank 0.")
        start = max(down.shape[0] for down, _ in modules.values())
        tensors: Tensors = {}
        pattern = {}
        for path, (down, up) in modules.items():
            rank = down.shape[0]
            tensors[f"{PREFIX}{path}.lora_A"] = down
            tensors[f"{PREFIX}{path}.lora_B"] = up
            tensors[f"{PREFIX}{path}.lora_E"] = torch.full((rank, 1), (start + EPSILON) / start, device=down.device)
            pattern |= {f"{path}.lora_E": [index < rank for index in range(start)]} if rank < start else {}
        config = self.config(
            init_r=start,
            target_r=method.rank,
            lora_alpha=start,
            lora_dropout=method.dropout,
            total_step=1,
            rank_pattern=pattern or None,
            target_modules=sorted(modules),
            bias="none",
        )
        return config, tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        extras = [key for key in FLAGS if config.get(key)] + (["bias"] if config.get("bias", "none") != "none" else [])
        if set(extras) - {"fan_in_fan_out"}:
            raise PeftkitError(f"adapter_config.json: only plain ADALORA can be read; set there: {', '.join(extras)}.")
        state, ranks = {}, {}
        for key, tensor in tensors.items():
            match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([ABE])(?:\.default)?", key)
            if match is None:
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a plain adapter.")
            name = NAMES[match[2]]
            state[f"{match[1]}/{name}"] = tensor.float().flatten() if name == "l" else tensor.float()
            if name == "l":
                ranks[match[1]] = tensor.shape[0]
        start, scale = max(ranks.values()), float(config["lora_alpha"]) / (config["init_r"] + EPSILON)
        method = self.method(
            rank=min(ranks.values()),
            initial_rank=start,
            alpha=scale * (start + EPSILON),
            dropout=float(config.get("lora_dropout") or 0),
            targets=tuple(ranks),
        )
        return method, state


CONVERTERS.add("adalora", TripletsConverter(AdaLoRA, "ADALORA"))
