"""Folders as AdapterHub's adapters 1.3.0 and OpenDelta 0.3.2 write them, and hooks that compute what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, INNER, SIZE, LAYERS = 32, 64, 8, 2
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h"}
ENDS = {"llama": ("self_attn.o_proj", "mlp.down_proj"), "gpt2": ("attn.c_proj", "mlp.c_proj")}
"""The linear maps that end attention and the feed-forward part of a layer."""
BOTTLENECK = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": True,
    "non_linearity": "swish",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 4,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
"""`DoubleSeqBnConfig(reduction_factor=4)`."""
SINGLE = {**BOTTLENECK, "mh_adapter": False, "non_linearity": "relu", "original_ln_before": True}
"""`SeqBnConfig(reduction_factor=4)`."""
LOW_RANK = {
    "alpha": 9,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.0,
    "dtype": None,
    "init_weights": "lora",
    "init_weights_seed": None,
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 4,
    "selfattn_lora": True,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
PREFIX = {
    "architecture": "prefix_tuning",
    "bottleneck_size": 16,
    "cross_prefix": True,
    "dropout": 0.0,
    "encoder_prefix": True,
    "flat": False,
    "init_weights_seed": None,
    "leave_out": [],
    "non_linearity": "tanh",
    "prefix_length": 5,
    "shared_gating": True,
    "use_gating": False,
}


class Noise:
    """Random tensors, the same in every run."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * 0.1


def write_hub(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], kind: str = "llama") -> Path:
    """Write a folder of adapters, whose adapter is named `task`."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "config": config,
        "hidden_size": WIDTH,
        "model_class": "LlamaForCausalLM",
        "model_name": "",
        "model_type": kind,
        "name": "task",
        "version": "adapters.1.3.0",
    }
    (folder / "adapter_config.json").write_text(json.dumps(description))
    save_file(tensors, folder / "adapter.safetensors")
    return folder


def write_delta(folder: Path, kind: str, tensors: Any, **options: Any) -> Path:
    """Write a folder of OpenDelta, its tensors as the lines of the refusal write them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "backbone_checkpoint_name": "",
        "backbone_class": "LlamaForCausalLM",
        "backbone_hash": "ff2f08518aba8108dec54cd14ec929bd",
        "common_structure": None,
        "delta_type": kind,
        "exclude_modules": ["lm_head"],
        "modified_modules": ["self_attn", "mlp"],
        "opendelta_version": "0.3.0",
        "transformers_version": "4.36.2",
    }
    (folder / "config.json").write_text(json.dumps({**config, **options}))
    save_file(tensors, folder / "pytorch_model.safetensors")
    return folder


def added(x: Tensor, tensors: dict[str, Tensor], act: Callable[[Tensor], Tensor]) -> Tensor:
    """Return U act(D x + b) + c."""
    return F.linear(act(F.linear(x, tensors["D"], tensors["b"])), tensors["U"], tensors["c"])


def bottleneck(noise: Noise) -> dict[str, Tensor]:
    """Draw D, b, U and c."""
    return {"D": noise(SIZE, WIDTH), "b": noise(SIZE), "U": noise(WIDTH, SIZE), "c": noise(WIDTH)}


def behind(module: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
    """Have a module return a function of its output."""

    def hook(_: nn.Module, given: Any, output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    module.register_forward_hook(hook)


def reading(module: nn.Module, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Have a module return a function of its input and its output."""

    def hook(_: nn.Module, given: Any, output: Any) -> Any:
        return function(given[0], output)

    module.register_forward_hook(hook)
