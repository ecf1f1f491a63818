"""Bottlenecks of AdapterHub's `adapters`: serial ones, Pfeiffer's and Compacter's, their scales multiplied out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.interchange.reader import check_fixed, check_known, common, function, shaped
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.compacter import Compacter
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.serial_adapter import SerialAdapter

KINDS = ("gpt2", "llama", "mistral")
"""Decoders whose places that library has in its own code, with a residual behind each sublayer and a norm in front."""
PLACES = {"attention_adapters": "o", "output_adapters": "down"}
"""Where bottlenecks stand there, and the role of the linear map that ends that sublayer."""
FIXED: dict[str, tuple[Any, str]] = {
    "is_parallel": (False, "reads the residual stream in front of the norm, where no parallel adapter stands here"),
    "use_gating": (False, "has a gate that is averaged over all tokens of a text, those that come later too"),
    "ln_before": (False, "adds a norm in front of the bottleneck"),
    "ln_after": (False, "adds a norm behind the bottleneck"),
    "original_ln_after": (True, "leaves the residual out"),
    "inv_adapter": (None, "adds invertible adapters behind the embedding"),
    "stochastic_depth": (0.0, "leaves whole adapters out at random"),
}
FACTORED: dict[str, tuple[Any, str]] = {
    "factorized_phm_W": (True, "has whole matrices in its Kronecker products"),
    "shared_W_phm": (False, "shares these matrices between layers"),
    "shared_phm_rule": (True, "has a rule of each layer"),
    "factorized_phm_rule": (False, "has a rule in two factors"),
    "phm_rank": (1, "has factors of another rank"),
    "phm_bias": (True, "has no biases"),
}
HARMLESS = {"mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before", "scaling"}
HARMLESS |= {"residual_before_ln", "phm_layer", "leave_out", "architecture"}
"""Keys that are read below, or that the tensors tell."""
HARMLESS |= {"init_weights", "init_weights_seed", "cross_adapter", "inv_adapter_reduction_factor", "phm_dim"}
HARMLESS |= {"phm_c_init", "phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "dropout"}
HARMLESS |= {"adapter_residual_before_ln"}
"""Keys that say how it starts or trains, and one that a norm behind the bottleneck is wanted for."""
Tensors = dict[str, Tensor]


def bottlenecks(
    config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str
) -> tuple[Method, dict[str, Tensor]]:
    """Return the method of a configuration of bottlenecks and its state, taken out of `tensors`."""
    if layout.kind not in KINDS:
        raise PeftkitError(
            f"{place}: bottlenecks are read for {', '.join(KINDS)} models, whose places are the same here, and this is "
            f"a {layout.kind} model."
        )
    factored = bool(config.get("phm_layer"))
    check_fixed(config, {**FIXED, **(FACTORED if factored else {})}, place)
    check_known(config, HARMLESS | FIXED.keys() | FACTORED.keys(), place)
    stream = bool(config.get("original_ln_before"))
    if stream and config.get("residual_before_ln", True) is not True:
        raise PeftkitError(f"{place}: residual_before_ln is {config['residual_before_ln']!r}, and only True is read.")
    if stream and config.get("mh_adapter"):
        raise PeftkitError(
            f"{place}: original_ln_before is True with mh_adapter, which has the adapter of attention read the "
            "residual stream in the middle of a layer, where none stands here."
        )
    wanted = [key for key, asked in zip(PLACES, ("mh_adapter", "output_adapter"), strict=True) if config.get(asked)]
    found = _taken(tensors, wanted, layout, place)
    rule = _rule(tensors, place) if factored else None
    options: dict[str, Any] = {"activation": function(str(config.get("non_linearity")), place)}
    scaling = config.get("scaling", 1.0)
    if rule is not None and not stream and scaling == 1.0:
        return _kronecker(found, rule, layout, options, place)
    dense = {where: _dense(own, rule, scaling, place) for where, own in found.items()}
    options["bottleneck"] = common([len(own["D"]) for own in dense.values()], "sizes of bottlenecks", place)
    if stream:
        blocks = layout.blocks
        chosen = {blocks.index(block): own for (block, _), own in dense.items()}
        state = {f"{blocks[index]}/{key}": value for index, own in chosen.items() for key, value in own.items()}
        layers = None if len(chosen) == len(blocks) else tuple(sorted(chosen))
        return PfeifferAdapter(reads="stream", layers=layers, **options), state
    sites = _sites(list(found), layout)
    state = {f"{sites[where]}/{key}": value for where, own in dense.items() for key, value in own.items()}
    return SerialAdapter(targets=tuple(sites.values()), **options), state


def _taken(tensors: Tensors, wanted: list[str], layout: Layout, place: str) -> dict[tuple[str, str], Tensors]:
    """Take the tensors of the bottlenecks at the `wanted` places: by block and place, then by name."""
    found: dict[tuple[str, str], Tensors] = {}
    for key in list(tensors):
        match = re.fullmatch(rf"(.+)\.({'|'.join(wanted) or '-'})\.adapters\.(.+)", key)
        if match is None:
            continue
        ends = [block for block in layout.blocks if f".{block}".endswith(f".{match[1]}")]
        if len(ends) != 1:
            raise PeftkitError(f"{place}: there is no layer '{match[1]}' in this {layout.kind} model: another base.")
        found.setdefault((ends[0], match[2]), {})[match[3]] = tensors.pop(key)
    if not found:
        raise PeftkitError(f"{place}: there are no tensors of bottlenecks at {' or '.join(wanted) or 'any place'}.")
    return found


def _sites(wheres: list[tuple[str, str]], layout: Layout) -> dict[tuple[str, str], str]:
    """Return the linear map behind which each bottleneck stands."""
    ends = {(layout.blocks[site.layer], site.role): site.id for site in layout.linears if site.layer is not None}
    return {(block, name): ends[block, PLACES[name]] for block, name in wheres}


def _rule(tensors: Tensors, place: str) -> Tensor:
    key = next((key for key in tensors if key.endswith("shared_parameters.phm_rule")), None)
    if key is None:
        raise PeftkitError(f"{place}: the tensor phm_rule is missing, which all layers share.")
    rule = tensors.pop(key)
    return shaped(rule, "phm_rule", place, None, *rule.shape[:1], *rule.shape[:1])


def _factors(own: Tensors, module: str, rule: Tensor, place: str) -> tuple[Tensor, Tensor]:
    """Return the factors [n, in / n, 1] and [n, 1, out / n] of a matrix."""
    left, right = (_part(own, f"{module}.{key}", place) for key in ("W_left", "W_right"))
    n = len(rule)
    return shaped(left, f"{module}.W_left", place, n, None, 1), shaped(right, f"{module}.W_right", place, n, 1, None)


def _part(own: Tensors, key: str, place: str) -> Tensor:
    if key not in own:
        raise PeftkitError(f"{place}: a bottleneck lacks the tensor {key}.")
    return own[key]


def _kronecker(
    found: Mapping[tuple[str, str], Tensors], rule: Tensor, layout: Layout, options: Mapping[str, Any], place: str
) -> tuple[Method, dict[str, Tensor]]:
    """Return Compacter with the factors as they are."""
    sites, state = _sites(list(found), layout), {"shared/A": rule}
    sizes = []
    for where, own in found.items():
        for side, bias, module in (("down", "b", "adapter_down.0"), ("up", "c", "adapter_up")):
            left, right = _factors(own, module, rule, place)
            state[f"{sites[where]}/s_{side}"] = left[..., 0]
            state[f"{sites[where]}/t_{side}"] = right[:, 0]
            state[f"{sites[where]}/{bias}"] = shaped(_part(own, f"{module}.b", place), f"{module}.b", place, None)
        sizes.append(len(own["adapter_down.0.b"]))
    size = common(sizes, "sizes of bottlenecks", place)
    return Compacter(bottleneck=size, division=len(rule), targets=tuple(sites.values()), **options), state


def _dense(own: Tensors, rule: Tensor | None, scaling: Any, place: str) -> Tensors:
    """Return D [r, width], b, U [width, r] and c, the scale in the last two."""
    names = {"b": "bias", "c": "bias"} if rule is None else {"b": "b", "c": "b"}
    down = _matrix(own, "adapter_down.0", rule, place)
    up = _matrix(own, "adapter_up", rule, place)
    b, c = _part(own, f"adapter_down.0.{names['b']}", place), _part(own, f"adapter_up.{names['c']}", place)
    known = {"scaling", *(f"{module}.{key}" for module in ("adapter_down.0", "adapter_up") for key in MATRIX)}
    stray = next((key for key in own if key not in known), None)
    if stray is not None:
        raise PeftkitError(f"{place}: the tensor {stray} of a bottleneck is part of nothing that is read.")
    shaped(b, "adapter_down.0.bias", place, len(down))
    shaped(up, "adapter_up.weight", place, None, len(down))
    shaped(c, "adapter_up.bias", place, len(up))
    if isinstance(scaling, int | float):
        scale = torch.tensor(float(scaling))
    else:
        scale = _part(own, "scaling", place)
        shaped(scale, "scaling", place, 1 if scale.numel() == 1 else len(up))
    return {"D": down, "b": b, "U": up * scale.reshape(-1, 1), "c": c * scale}


MATRIX = ("weight", "bias", "W_left", "W_right", "b")


def _matrix(own: Tensors, module: str, rule: Tensor | None, place: str) -> Tensor:
    """Return a matrix [out, in]: as it is, or the sum of its Kronecker products."""
    if rule is None:
        return shaped(_part(own, f"{module}.weight", place), f"{module}.weight", place, None, None)
    left, right = _factors(own, module, rule, place)
    return torch.stack([torch.kron(a, s @ t) for a, s, t in zip(rule, left, right, strict=True)]).sum(0).T
