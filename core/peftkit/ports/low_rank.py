"""A low-rank pair outside its own layer: parts of a fused module as one pair, and the layout of Hugging Face peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.quantization.weight import shape

PREFIX = "base_model.model."
PLAIN = {"lora_alpha", "lora_dropout", "peft_type", "peft_version", "r", "rank_pattern", "alpha_pattern", "revision"}
PLAIN |= {"target_modules", "task_type", "use_rslora", "fan_in_fan_out", "init_lora_weights", "inference_mode", "bias"}
PLAIN |= {"auto_mapping", "base_model_name_or_path", "exclude_modules", "layers_pattern", "runtime_config"}
PLAIN |= {"megatron_core", "qalora_group_size"}
EMPTY = (None, False, [], {}, "", 1)


def join(pairs: Mapping[str, tuple[Tensor, Tensor, Site]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return one pair (A [rank, in], B [out, rank]) for each module path.

    The parts of a fused module become one pair of the summed rank; its B holds each part in its own rows.
    """
    modules: dict[str, list[tuple[Tensor, Tensor, Site]]] = {}
    for pair in pairs.values():
        modules.setdefault(pair[2].path, []).append(pair)
    joined = {}
    for path, parts in modules.items():
        ups = [up if site.rows is None else _widen(up, site) for _, up, site in parts]
        joined[path] = (torch.cat([down for down, _, _ in parts]), torch.cat(ups, dim=1))
    return joined


def _widen(up: Tensor, site: Site) -> Tensor:
    sizes = shape(site.module)
    assert sizes is not None
    assert site.rows is not None
    return site.rows.put(up.new_zeros(up.shape[1], sizes[0]), up.T).T


def to_hf_peft(
    pairs: Mapping[str, tuple[Tensor, Tensor, Site]], dropout: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the LoRA configuration and tensors of Hugging Face peft for pairs whose scale is already in B.

    Every module's alpha equals its rank there, so that the reader multiplies by one whatever
    the pattern of ranks was.
    """
    modules = join(pairs)
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in modules.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = down
        tensors[f"{PREFIX}{path}.lora_B.weight"] = up
    ranks = {f"^{re.escape(path)}$": down.shape[0] for path, (down, _) in modules.items()}
    first = next(iter(ranks.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": first,
        "lora_alpha": first,
        "lora_dropout": dropout,
        "rank_pattern": {path: rank for path, rank in ranks.items() if rank != first},
        "alpha_pattern": {path: rank for path, rank in ranks.items() if rank != first},
        "target_modules": sorted(modules),
        "bias": "none",
        "inference_mode": True,
    }
    return config, tensors


def from_hf_peft(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the options and the state by '<path>/<tensor>' of a LoRA adapter of Hugging Face peft, a plain one."""
    if config.get("peft_type") != "LORA":
        raise PeftkitError(f"adapter_config.json: peft_type is {config.get('peft_type')!r}; only LORA can be read.")
    extras = [key for key, value in config.items() if key not in PLAIN and (value is True or value not in EMPTY)]
    extras += ["bias"] if config.get("bias", "none") != "none" else []
    if extras:
        raise PeftkitError(f"adapter_config.json: {', '.join(sorted(extras))} is set, and only plain LoRA can be read.")
    downs, ups = {}, {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([AB])(?:\.default)?\.weight", key)
        if match is None:
            raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a plain LoRA adapter.")
        (downs if match[2] == "A" else ups)[match[1]] = tensor.float()
    if set(downs) != set(ups):
        raise PeftkitError(
            f"adapter_model.safetensors: lora_A or lora_B is missing for {sorted(set(downs) ^ set(ups))}."
        )
    alphas = {path: float(_pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])) for path in downs}
    options = {
        "rank": config["r"],
        "alpha": float(config["lora_alpha"]),
        "dropout": float(config.get("lora_dropout") or 0),
        "targets": tuple(downs),
        "rank_pattern": {path: down.shape[0] for path, down in downs.items()},
        "alpha_pattern": alphas,
        "rank_stabilised": bool(config.get("use_rslora")),
    }
    state = {f"{path}/A": down for path, down in downs.items()} | {f"{path}/B": up for path, up in ups.items()}
    return options, state


def _pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
