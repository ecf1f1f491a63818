"""Methods whose tensors all modules share in Hugging Face peft: banks, vectors, random bases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, Config, Tensors
from peftkit.export.hf_peft.plain import PlainConverter, number, plain
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.randlora import RandLoRA
from peftkit.methods.unilora import UniLoRA
from peftkit.methods.vblora import VBLoRA


def _bases_told(method: RandLoRA, adapters: Mapping[str, Any]) -> Config:
    seeds = {"projection_prng_key": method.projection_seed, "save_projection": True}
    return {"r": method.rank, "randlora_alpha": method.alpha, "randlora_dropout": method.dropout, **seeds}


def _bases_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    if "shared/A" not in state:
        raise PeftkitError(
            "adapter_config.json: save_projection is off, and that library draws other bases from the same seed: save "
            "the adapter with save_projection=True."
        )
    sizes = {"rank": config["r"], "alpha": float(number(config, "randlora_alpha", 640))}
    return {**sizes, "dropout": float(number(config, "randlora_dropout")), "save_projection": True}


def _bank_told(method: VBLoRA, adapters: Mapping[str, Any]) -> Config:
    cut = next(
        (a.site for a in adapters.values() if a.site.inputs % method.length or a.site.outputs % method.length), None
    )
    if cut is not None:
        raise PeftkitError(
            f"{method.name}: length {method.length} does not divide the sides of {cut.id}, which Hugging Face peft "
            "wants: use --format merged."
        )
    sizes = {"r": method.rank, "num_vectors": method.vectors, "vector_length": method.length, "topk": method.top}
    return {**sizes, "vblora_dropout": method.dropout}


def _bank_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    vectors, length = state["shared/vectors"].shape
    sizes = {"rank": config["r"], "vectors": vectors, "length": length, "top": config.get("topk", 2)}
    return {**sizes, "dropout": float(number(config, "vblora_dropout"))}


def _vector_told(method: UniLoRA, adapters: Mapping[str, Any]) -> Config:
    sizes = {"r": method.rank, "theta_d_length": method.length, "proj_seed": method.projection_seed}
    return {**sizes, "unilora_dropout": method.dropout, "save_indices": True}


def _vector_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = {"rank": config["r"], "length": len(state["shared/v"]), "save_projection": True}
    return {**sizes, "dropout": float(number(config, "unilora_dropout"))}


class VectorConverter(PlainConverter):
    """Places travel as whole numbers, and with each what it is weighed with, which here stands once for each entry."""

    def laid(self, method: Method, adapter: Any) -> Tensors:
        weights = adapter.shared.weights
        return {key: places.long() for key, places in (("a", adapter.a), ("b", adapter.b))} | {
            "weights_a": weights[adapter.a],
            "weights_b": weights[adapter.b],
        }

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        if not config.get("save_indices"):
            raise PeftkitError(
                "adapter_config.json: save_indices is off, and the places are drawn otherwise there: save the adapter "
                "with save_indices=True."
            )
        method, state = super().read(config, tensors, layout)
        weights = torch.ones_like(state["shared/v"])
        for key in [key for key in state if key.rpartition("/")[2] in ("a", "b")]:
            site, _, name = key.rpartition("/")
            state[key] = state[key].int()
            weights[state[key]] = state.pop(f"{site}/weights_{name}")
        return method, {**state, "shared/weights": weights}


plain(
    RandLoRA,
    "RANDLORA",
    {"randlora_lambda": "l", "randlora_gamma": "g"},
    (_bases_told, _bases_read),
    needs=("r",),
    shared={"randlora_A": "A", "randlora_B": "B"},
)
plain(
    VBLoRA,
    "VBLORA",
    {"vblora_logits_A": "a", "vblora_logits_B": "b"},
    (_bank_told, _bank_read),
    needs=("r",),
    fixed={"save_only_topk_weights": False},
    shared={"vblora_vector_bank": "vectors"},
)
CONVERTERS.add(
    UniLoRA.name,
    VectorConverter(
        UniLoRA,
        "UNILORA",
        {
            f"unilora_{part}_{key.upper()}": f"{mine}{key}"
            for part, mine in (("indices", ""), ("scales", "weights_"))
            for key in "ab"
        },
        (_vector_told, _vector_read),
        needs=("r",),
        shared={"unilora_theta_d": "v"},
    ),
)
