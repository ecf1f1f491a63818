"""LoRA, (IA)^3, prefixes and soft prompts of AdapterHub's `adapters`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.interchange.reader import check_fixed, check_known, check_there, collapsed, function, shaped
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.ia3 import IA3
from peftkit.methods.lora import LoRA
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.quantization.weight import shape

GATED = (False, "has a gate that is averaged over all tokens of a text, those that come later too")
FIXED: dict[str, tuple[Any, str]] = {
    "use_gating": GATED,
    "use_dora": (False, "has magnitudes of rows"),
    "vera_d": (None, "has VeRA's vectors"),
    "vera_b": (None, "has VeRA's vectors"),
}
HARMLESS = {"architecture", "composition_mode", "selfattn_lora", "intermediate_lora", "output_lora", "attn_matrices"}
HARMLESS |= {"r", "alpha", "dropout", "leave_out", "init_weights", "init_weights_seed", "dtype"}
"""Keys that are read below, that the tensors tell, and those of the start."""
PREFIX = {"architecture", "prefix_length", "flat", "bottleneck_size", "non_linearity", "leave_out", "dropout"}
PREFIX |= {"encoder_prefix", "cross_prefix", "shared_gating", "init_weights_seed", "use_gating"}
PROMPT = {"architecture", "prompt_length", "prompt_init", "prompt_init_text", "combine", "init_weights_seed"}
Tensors = dict[str, Tensor]
ORDER = ("q", "k", "v")
"""How queries, keys and values follow each other in one map."""


def pairs(config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str) -> tuple[Method, Tensors]:
    """Return LoRA; the pairs of queries, keys and values in one map become one pair of the summed rank."""
    check_fixed(config, FIXED, place)
    check_known(config, HARMLESS | FIXED.keys(), place)
    check_there(config, ("r", "alpha"), place)
    found = _taken(tensors, ("lora_A", "lora_B"), layout, place)
    scale = float(config["alpha"]) / int(config["r"])
    state: Tensors = {}
    for path, own in found.items():
        down, up = (shaped(own[key], f"{path}.{key}", place, None, None) for key in ("lora_A", "lora_B"))
        if down.shape[0] != up.shape[1]:
            down, up = _joined(down, up, config, _rows(layout, path, place), path, place)
        state |= {f"{path}/A": down, f"{path}/B": up}
    ranks = {path: rank for path in found if (rank := len(state[f"{path}/A"])) != config["r"]}
    method = LoRA(
        rank=int(config["r"]),
        alpha=float(config["alpha"]),
        dropout=float(config.get("dropout") or 0),
        targets=tuple(found),
        rank_pattern=ranks,
        alpha_pattern={path: scale * rank for path, rank in ranks.items()},
    )
    return method, state


def scales(config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str) -> tuple[Method, Tensors]:
    """Return (IA)^3 on outputs, the factor `alpha` in it; what a map of several has none for is one."""
    check_fixed(config, FIXED, place)
    check_known(config, HARMLESS | FIXED.keys(), place)
    state: Tensors = {}
    found = _taken(tensors, ("lora_B",), layout, place)
    for path, own in found.items():
        scale, rows = own["lora_B"].flatten() * float(config.get("alpha") or 1), _rows(layout, path, place)
        if len(scale) != rows:
            whole = torch.ones(rows)
            size, at = _third(config, len(scale), rows, path, place)
            for position, index in enumerate(at):
                whole[index * size : (index + 1) * size] = scale[position * size : (position + 1) * size]
            scale = whole
        state[f"{path}/scale"] = scale
    return IA3(targets=tuple(found), feedforward=()), state


def prefixes(config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str) -> tuple[Method, Tensors]:
    """Return keys and values of each layer, the MLP multiplied out; positions of the text do not move there either."""
    check_fixed(config, {"use_gating": GATED}, place)
    check_known(config, PREFIX, place)
    check_there(config, ("prefix_length",), place)
    own = _with_stem(tensors, "prefix_tuning.prefix_tunings.self_prefix.")
    if "control_trans" in own:
        flat, length = own["control_trans"].flatten(), int(config["prefix_length"])
        if not len(flat) or len(flat) % length:
            raise PeftkitError(
                f"{place}: control_trans has {len(flat)} numbers, not so many for each of {length} rows."
            )
        whole = flat.view(length, -1)
    else:
        names = ("control_trans.0", "control_trans.2")
        wanted = ("wte.weight", *(f"{name}.{kind}" for name in names for kind in ("weight", "bias")))
        lacking = [key for key in wanted if key not in own]
        if lacking:
            raise PeftkitError(f"{place}: the prefix lacks the tensor {lacking[0]}.")
        maps = [(own[f"{name}.weight"], own[f"{name}.bias"]) for name in names]
        whole = collapsed(own["wte.weight"], maps, place, function(str(config.get("non_linearity", "tanh")), place))
    left_out = set(config.get("leave_out") or ())
    layers = tuple(index for index in range(len(layout.blocks)) if index not in left_out)
    sites = layout.attention(layers)
    heads = [site.heads for site in sites if site.heads is not None]
    sizes = [size for each in heads for size in (each.keys, each.values)]
    if sum(sizes) != whole.shape[1]:
        raise PeftkitError(
            f"{place}: the prefix has {whole.shape[1]} numbers at each position, and {sum(sizes)} are the keys and "
            f"values of {len(sites)} layers of this {layout.kind} model: another base."
        )
    parts = iter(whole.split(sizes, 1))
    state = {f"{site.id}/{key}": next(parts).contiguous() for site in sites for key in "KV"}
    return PTuningV2(length=len(whole), layers=layers if left_out else None), state


def prompts(config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str) -> tuple[Method, Tensors]:
    """Return a soft prompt in front of the text."""
    check_known(config, PROMPT, place)
    check_fixed(config, {"combine": ("prefix", "puts the rows behind the first token")}, place)
    rows = _with_stem(tensors, "prompt_tunings.").get("prompt_embedding.weight")
    if rows is None:
        raise PeftkitError(f"{place}: the tensor prompt_embedding.weight is missing, which a soft prompt is.")
    shaped(rows, "prompt_embedding.weight", place, None, layout.embedding().outputs)
    return PromptTuning(length=len(rows)), {f"{layout.embedding().id}/P": rows}


def _taken(tensors: Tensors, names: tuple[str, ...], layout: Layout, place: str) -> dict[str, Tensors]:
    """Take the tensors `names` of each map, all of which have all of them; by the path of the map."""
    found: dict[str, Tensors] = {}
    for key in list(tensors):
        match = re.fullmatch(rf"(.+)\.loras\.({'|'.join(names)})", key)
        if match is not None:
            ends = [path for path in layout.modules if f".{path}".endswith(f".{match[1]}")]
            if len(ends) != 1:
                raise PeftkitError(f"{place}: there is no module '{match[1]}' in this {layout.kind} model.")
            found.setdefault(ends[0], {})[match[2]] = tensors.pop(key)
    lacking = next((f"{path}: {name}" for path, own in found.items() for name in names if name not in own), None)
    if lacking is not None or not found:
        raise PeftkitError(f"{place}: the tensors of LoRA lack {lacking or ' and '.join(names)}.")
    return found


def _with_stem(tensors: Tensors, stem: str) -> Tensors:
    """Take the tensors whose names hold a stem, by what follows it."""
    named = {key: key.partition(stem)[2] for key in list(tensors) if stem in key}
    return {name: tensors.pop(key) for key, name in named.items()}


def _rows(layout: Layout, path: str, place: str) -> int:
    sizes = shape(layout.modules[path])
    if sizes is None:
        raise PeftkitError(f"{place}: {path} is no linear map in this {layout.kind} model.")
    return sizes[0]


def _third(config: Mapping[str, Any], length: int, rows: int, path: str, place: str) -> tuple[int, list[int]]:
    """Return the size of queries, keys and values in one map, and which of them are adapted."""
    at = [index for index, role in enumerate(ORDER) if role in (config.get("attn_matrices") or ())]
    if not at or rows % 3 or rows // 3 * len(at) != length:
        raise PeftkitError(f"{place}: the tensors at {path} are for {length} outputs, and {rows} are there.")
    return rows // 3, at


def _joined(
    down: Tensor, up: Tensor, config: Mapping[str, Any], rows: int, path: str, place: str
) -> tuple[Tensor, Tensor]:
    """Return one pair: A is all of them, B has each part's columns in its own rows."""
    size, at = _third(config, len(up), rows, path, place)
    rank = up.shape[1]
    shaped(down, f"{path}.lora_A", place, rank * len(at), None)
    whole = up.new_zeros(rows, len(down))
    for position, index in enumerate(at):
        part = up[position * size : (position + 1) * size]
        whole[index * size : (index + 1) * size, position * rank : (position + 1) * rank] = part
    return down, whole
