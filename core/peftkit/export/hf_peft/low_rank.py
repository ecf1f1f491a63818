"""LoRA and what is LoRA once it is trained: low-rank pairs as Hugging Face peft has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_dropout import LoRADropout
from peftkit.methods.lora_fa import LoRAFA
from peftkit.methods.lora_plus import LoRAPlus
from peftkit.quantization.weight import shape

Pairs = dict[str, tuple[Tensor, Tensor, Site]]
"""A [rank, in] and B [out, rank], the scale in B, and the site of each adapter."""
PLAIN = {"lora_alpha", "lora_dropout", "peft_type", "peft_version", "r", "rank_pattern", "alpha_pattern", "revision"}
PLAIN |= {"target_modules", "task_type", "use_rslora", "fan_in_fan_out", "init_lora_weights", "inference_mode", "bias"}
PLAIN |= {"auto_mapping", "base_model_name_or_path", "exclude_modules", "layers_pattern", "runtime_config"}
PLAIN |= {"megatron_core", "qalora_group_size"}
EMPTY = (None, False, [], {}, "", 1)


class LowRankConverter(Converter):
    """Pairs of matrices; a method whose adapters hold more says how it becomes a pair, and what a pair lacks."""

    def reads(self, config: Mapping[str, Any]) -> bool:
        return super().reads(config) and not config.get("use_dora")

    def write(self, method: LoRA, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        if method.bias != "none":
            raise PeftkitError(
                f"{method.name}: trained biases do not travel to Hugging Face peft: use --format merged."
            )
        return to_folder(self.pairs(method, adapters), method.dropout)

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        options, state = from_folder(config, tensors)
        return self.method(**options), {**state, **self.lacking(config, state)}

    def pairs(self, method: Any, adapters: Mapping[str, Any]) -> Pairs:
        """Return the plain pair of each adapter."""
        return {key: (*adapter.exported(), adapter.site) for key, adapter in adapters.items()}

    def lacking(self, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensors:
        """Return the tensors of the method that a pair does not have, such that they change nothing."""
        return {}


class HiddenConverter(LowRankConverter):
    """The dropout of that library is another one: of elements, at the input alone."""

    def write(self, method: LoRA, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        config, tensors = super().write(method, adapters, model)
        return {**config, "lora_dropout": 0.0}, tensors


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


def to_folder(pairs: Mapping[str, tuple[Tensor, Tensor, Site]], dropout: float) -> tuple[Config, Tensors]:
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


def from_folder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], Tensors]:
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


CONVERTERS.add("lora", LowRankConverter(LoRA, "LORA"))
CONVERTERS.add("lora-dropout", HiddenConverter(LoRADropout, None))
CONVERTERS.add("lora-fa", LowRankConverter(LoRAFA, None))
CONVERTERS.add("lora-plus", LowRankConverter(LoRAPlus, None))
