"""Low-rank pairs with something between their matrices, which is multiplied into one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, Tensors
from peftkit.export.hf_peft.low_rank import LowRankConverter, Pairs
from peftkit.methods.dylora import DyLoRA, Truncated
from peftkit.methods.moslora import Mixed, MoSLoRA
from peftkit.methods.sora import Gated, SoRA


class TruncatedConverter(LowRankConverter):
    """The pair at the rank used outside training."""

    def pairs(self, method: DyLoRA, adapters: Mapping[str, Truncated]) -> Pairs:
        cut = {key: (*adapter.cut(), adapter.site) for key, adapter in adapters.items()}
        return {key: (down.detach(), up.detach(), site) for key, (down, up, site) in cut.items()}

    def lacking(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensors:
        return {"shared/width": torch.tensor([int(config["r"])])}


class MixedConverter(LowRankConverter):
    """The mixer goes into A."""

    def pairs(self, method: MoSLoRA, adapters: Mapping[str, Mixed]) -> Pairs:
        return {key: ((a.M @ a.A).detach(), a.B.detach() * a.scale, a.site) for key, a in adapters.items()}

    def lacking(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensors:
        return {f"{key[:-1]}M": torch.eye(down.shape[0]) for key, down in state.items() if key.endswith("/A")}


class GatedConverter(LowRankConverter):
    """The gates go into A; sites whose gates are all closed are left out."""

    def pairs(self, method: SoRA, adapters: Mapping[str, Gated]) -> Pairs:
        pairs = {
            key: (a.A.detach() * a.g.detach()[:, None], a.B.detach() * a.scale, a.site)
            for key, a in adapters.items()
            if len(a.g)
        }
        if not pairs:
            raise PeftkitError(f"{method.name}: every gate is closed, and Hugging Face peft has no adapter of rank 0.")
        return pairs

    def lacking(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensors:
        return {f"{key[:-1]}g": torch.ones(down.shape[0]) for key, down in state.items() if key.endswith("/A")}


CONVERTERS.add("dylora", TruncatedConverter(DyLoRA, None))
CONVERTERS.add("moslora", MixedConverter(MoSLoRA, None))
CONVERTERS.add("sora", GatedConverter(SoRA, None))
