"""Folders of OpenDelta (Hu et al. 2023, arXiv:2307.03084): config.json with a `delta_type`, and the tensors.

Keys and configurations are those that version 0.3.2 writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from peftkit import schemas
from peftkit.errors import PeftkitError
from peftkit.interchange.reader import (
    READERS,
    FolderReader,
    ReadAdapter,
    check_known,
    check_there,
    collapsed,
    common,
    function,
    shaped,
)
from peftkit.layout import Layout, own_parameters
from peftkit.method import Method
from peftkit.methods.bitfit import BitFit
from peftkit.methods.lora import LoRA
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.parallel_adapter import ParallelAdapter
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.methods.serial_adapter import SerialAdapter
from peftkit.schemas import Size, Stored, Text

Tensors = dict[str, Tensor]
Kind = Callable[["DeltaFolder"], list[tuple[Method, Tensors]]]
KNOWN = {"delta_type", "modified_modules", "exclude_modules", "unfrozen_modules", "common_structure", "backbone_class"}
KNOWN |= {"backbone_checkpoint_name", "backbone_hash", "opendelta_version", "transformers_version"}
"""Keys of every type: what is modified is told by the tensors, of which none may be left over."""
BESIDE = ["attn@", "attn@", "ff@.w1@", "ff@.w2@"]
"""Between which modules parallel adapters run by default: each pair is where they read and where they are added."""
BOTTLENECK = {"modulelist.down_proj.weight": "D", "modulelist.down_proj.bias": "b"}
BOTTLENECK |= {"modulelist.up_proj.weight": "U", "modulelist.up_proj.bias": "c"}


class DeltaConfig(Stored):
    """What config.json says; which keys are there depends on the type."""

    delta_type: Text
    lora_r: Size | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    reparameterize: bool | None = None
    backbone_checkpoint_name: str | None = None


class DeltaFolder:
    """A folder's configuration, its tensors, and the model that they are for."""

    def __init__(self, config: Mapping[str, Any], tensors: Tensors, layout: Layout, place: str):
        self.config, self.tensors, self.layout, self.place = config, tensors, layout, place

    def known(self, *keys: str) -> None:
        """Refuse options beside those of every type and `keys`."""
        check_known(self.config, KNOWN | {*keys}, self.place)

    def taken(self, stem: str, names: Mapping[str, str]) -> dict[str, Tensors]:
        """Take the tensors behind `<module>.<stem>.`, by module path and our name; each module has all of them."""
        found: dict[str, Tensors] = {}
        for key in list(self.tensors):
            match = re.fullmatch(rf"(.+)\.{re.escape(stem)}\.({'|'.join(map(re.escape, names))})", key)
            if match is not None:
                ends = [path for path in self.layout.modules if f".{path}".endswith(f".{match[1]}")]
                if len(ends) != 1:
                    raise PeftkitError(
                        f"{self.place}: there is no module '{match[1]}' in this {self.layout.kind} model: another base."
                    )
                found.setdefault(ends[0], {})[names[match[2]]] = self.tensors.pop(key)
        lacking = next(
            (f"{path}.{stem}: {n}" for path, own in found.items() for n in names.values() if n not in own), ""
        )
        if lacking or not found:
            raise PeftkitError(f"{self.place}: the tensors of the adapter lack {lacking or f'any of {stem}'}.")
        return found

    def ends(self, path: str) -> str:
        """Return the linear map whose output is that of a module: itself, or the last of an attention or feed-forward.

        Raises PeftkitError for any other module.
        """
        linears = {site.path for site in self.layout.linears}
        if path in linears:
            return path
        for role, last in (("attention", "o"), ("mlp", "down")):
            for whole in self.layout.wholes(role):
                if whole.path == path:
                    return next(s.path for s in self.layout.linears if s.layer == whole.layer and s.role == last)
        raise PeftkitError(
            f"{self.place}: {path} is no linear map, attention or feed-forward part, behind which it is read."
        )


def _pairs(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    delta.known("lora_r", "lora_alpha", "lora_dropout")
    check_there(delta.config, ("lora_r", "lora_alpha"), delta.place)
    found = delta.taken("lora", {"lora_A": "A", "lora_B": "B"})
    config = delta.config
    method = LoRA(
        rank=int(config["lora_r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0),
        targets=tuple(found),
    )
    return [(method, {f"{path}/{key}": value for path, own in found.items() for key, value in own.items()})]


def _serial(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    delta.known("bottleneck_dim", "non_linearity")
    return [_behind(delta, delta.taken("adapter", BOTTLENECK))]


def _low_rank(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    """The outer products of which its matrices are made, multiplied out: other ranks than one fail there too."""
    delta.known("reduction_factor", "non_linearity", "low_rank_w_init", "low_rank_rank")
    parts = {"W_left": "left", "W_right": "right", "b": "bias"}
    names = {f"{side}_sampler.{key}": f"{side} {mine}" for side in ("down", "up") for key, mine in parts.items()}
    found = delta.taken("low_rank_adapter", names)
    for own in found.values():
        for side in ("down", "up"):
            left, right = f"{side} left", f"{side} right"
            shaped(own[right], right, delta.place, shaped(own[left], left, delta.place, None, None).shape[1], None)
    ranks = [own["down left"].shape[1] for own in found.values()]
    if common(ranks, "ranks", delta.place) != 1:
        raise PeftkitError(f"{delta.place}: low_rank_rank is {ranks[0]}, and only 1 is what that library computes.")
    dense = {
        path: {
            "D": (own["down left"] * own["down right"]).T,
            "b": own["down bias"],
            "U": (own["up left"] * own["up right"]).T,
            "c": own["up bias"],
        }
        for path, own in found.items()
    }
    return [_behind(delta, dense)]


def _behind(delta: DeltaFolder, found: Mapping[str, Tensors]) -> tuple[Method, Tensors]:
    """Return serial adapters."""
    sites = {delta.ends(path): own for path, own in found.items()}
    size = _size(sites, delta.place)
    act = function(str(delta.config.get("non_linearity", "gelu_new")), delta.place)
    method = SerialAdapter(bottleneck=size, activation=act, targets=tuple(sites))
    return method, {f"{path}/{key}": value for path, own in sites.items() for key, value in own.items()}


def _size(found: Mapping[str, Tensors], place: str) -> int:
    sizes = [len(shaped(own["D"], "down_proj.weight", place, None, None)) for own in found.values()]
    return common(sizes, "sizes of bottlenecks", place)


def _parallel(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    delta.known("bottleneck_dim", "non_linearity", "scaled")
    if delta.config.get("modified_modules") != BESIDE:
        raise PeftkitError(
            f"{delta.place}: modified_modules is {delta.config.get('modified_modules')}, and of parallel adapters only "
            f"{BESIDE} are read, beside attention and feed-forward parts."
        )
    found = delta.taken("parallel_adapter", BOTTLENECK)
    act = function(str(delta.config.get("non_linearity", "gelu_new")), delta.place)
    read: list[tuple[Method, Tensors]] = []
    places: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")
    for beside in places:
        wholes = [site.id for site in delta.layout.wholes(beside)]
        own = {whole: found.pop(path) for whole in wholes for path in list(found) if f"{path}.".startswith(f"{whole}.")}
        size = _size(own, delta.place) if own else 1
        method = ParallelAdapter(bottleneck=size, activation=act, beside=beside)
        read.append((method, {f"{whole}/{key}": value for whole, one in own.items() for key, value in one.items()}))
    return [(method, state) for method, state in read if state]


def _prefix(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    """Keys and values of each attention; positions of the text do not move there, as it alters attention alone."""
    delta.known("prefix_token_num", "reparameterize", "embed_dim", "mid_dim")
    sites = delta.layout.attention()
    if delta.config.get("reparameterize", True):
        maps = [f"control_trans.{index}.{kind}" for index in (0, 2) for kind in ("weight", "bias")]
        own = next(iter(delta.taken("reparams", {key: key for key in ("wte.weight", *maps)}).values()))
        layers = [(own[maps[0]], own[maps[1]]), (own[maps[2]], own[maps[3]])]
        whole = collapsed(own["wte.weight"], layers, delta.place)
        sizes = [size for site in sites if site.heads is not None for size in (site.heads.keys, site.heads.values)]
        shaped(whole, "control_trans.2", delta.place, None, sum(sizes))
        parts = iter(whole.split(sizes, 1))
        state = {f"{site.id}/{key}": next(parts).contiguous() for site in sites for key in "KV"}
    else:
        found = delta.taken("prefix", {"past_key": "K", "past_value": "V"})
        state = {f"{path}/{key}": value for path, own in found.items() for key, value in own.items()}
    shaped(next(iter(state.values())), "past_key", delta.place, None, None)
    return [(PTuningV2(length=len(next(iter(state.values())))), state)]


def _prompt(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    delta.known("soft_token_num", "init_range", "token_init")
    rows = delta.tensors.pop("soft_prompt_layer.soft_embeds", None)
    if rows is None:
        raise PeftkitError(f"{delta.place}: the tensor soft_prompt_layer.soft_embeds is missing.")
    shaped(rows, "soft_embeds", delta.place, None, delta.layout.embedding().outputs)
    return [(PromptTuning(length=len(rows)), {f"{delta.layout.embedding().id}/P": rows})]


def _biases(delta: DeltaFolder) -> list[tuple[Method, Tensors]]:
    """The model's own biases; those that are not there stay as they are."""
    delta.known()
    layout = delta.layout
    there = {key: bias for key, bias in own_parameters(layout.model) if key.endswith(".bias") and layout.reached(key)}
    state = {f"own/{key}": delta.tensors.pop(key, bias.detach().float()) for key, bias in there.items()}
    return [(BitFit(), state)]


KINDS: dict[str, Kind] = {
    "lora": _pairs,
    "adapter": _serial,
    "low_rank_adapter": _low_rank,
    "parallel_adapter": _parallel,
    "prefix": _prefix,
    "soft_prompt": _prompt,
    "bitfit": _biases,
}
"""By `delta_type`."""


class OpenDelta(FolderReader):
    """What `save_finetuned` of that library writes."""

    library = "OpenDelta"
    configuration, tensors, pickled = "config.json", "pytorch_model.safetensors", "pytorch_model.bin"

    def claims(self, folder: Path) -> bool:
        path = folder / self.configuration
        return path.is_file() and {"delta_type", "backbone_hash"} <= set(schemas.read(path, Stored))

    def base(self, folder: Path) -> tuple[str | None, str | None]:
        return schemas.read(folder / self.configuration, DeltaConfig).get("backbone_checkpoint_name") or None, None

    def read(self, folder: Path, layout: Layout) -> ReadAdapter:
        self.check_readable(folder)
        config = schemas.read(folder / self.configuration, DeltaConfig)
        place, kind = str(folder / self.configuration), config["delta_type"]
        if kind not in KINDS:
            raise PeftkitError(f"{place}: delta_type is '{kind}'; read are {', '.join(sorted(KINDS))}.")
        delta = DeltaFolder(config, self.values(folder), layout, place)
        read = KINDS[kind](delta)
        if delta.tensors:
            stray = min(delta.tensors)
            raise PeftkitError(f"{folder / self.tensors}: the tensor '{stray}' is no part of a '{kind}' that is read.")
        state = {f"{place}/{key}": value for place, (_, own) in enumerate(read) for key, value in own.items()}
        return ReadAdapter([method for method, _ in read], state, in_front=True)


READERS.add("opendelta", OpenDelta())
