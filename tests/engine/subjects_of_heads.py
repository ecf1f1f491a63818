"""Tiny models whose heads differ: plain, tied, biased, scaled, capped, adapted, trained, packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftkit.adaptation import attach
from peftkit.method import METHODS
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS

HEADS = ["plain", "tied", "scaled", "adapted", "trained", "packed"]


def headed(kind: str) -> tuple[Any, dict[str, Tensor]]:
    """Return a model with such a head, and the parameters that are trained by name."""
    if kind == "plain":
        return frozen(tiny("llama")), {}
    if kind == "tied":
        return frozen(tiny("gemma")), {}
    model: Any = tiny("llama")
    if kind == "scaled":
        return frozen(Scaled.over(model)), {}
    if kind == "packed":
        quantizer = QUANTIZERS["nf4"].from_options({"block_size": 32})
        quantize(model, Quantization(quantizer, {"lm_head": quantizer}))
        return frozen(model), {}
    if kind == "adapted":
        adaptation = attach(model, [METHODS["lora"].from_options({"targets": "head", "rank": 3})])
        for _, parameter in adaptation.parameters():
            nn.init.normal_(parameter, std=0.1)
        return model, dict(adaptation.parameters())
    frozen(model).lm_head.weight.requires_grad_(True)
    return model, {"lm_head.weight": model.lm_head.weight}


def frozen(model: Any) -> Any:
    return model.requires_grad_(False)


class Scaled:
    """Scales and caps the logits behind the head, as some models do."""

    @staticmethod
    def over(model: Any) -> Any:
        plain = type(model).forward

        class ScaledModel(type(model)):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                output = plain(self, *args, **kwargs)
                output.logits = 5 * torch.tanh(output.logits * 0.3 / 5)
                return output

        model.__class__ = ScaledModel
        return model
