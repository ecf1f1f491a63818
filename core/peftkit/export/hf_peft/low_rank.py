"""LoRA and what is LoRA once it is trained: low-rank pairs as Hugging Face peft has them, alone and with more."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft import beside
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.export.hf_peft.experts import check_not_taken_for_experts, packed_pairs, stack_paths, unpacked_pairs
from peftkit.export.hf_peft.starts import moved, taken_out
from peftkit.layers.triplets import EPSILON, Triplets
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.adalora import AdaLoRA
from peftkit.methods.capaboost import CapaBoost
from peftkit.methods.dora import DoRA, row_squares
from peftkit.methods.dylora import DyLoRA
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_dropout import LoRADropout
from peftkit.methods.lora_fa import LoRAFA
from peftkit.methods.lora_plus import LoRAPlus
from peftkit.methods.moslora import MoSLoRA
from peftkit.methods.sora import SoRA
from peftkit.quantization.weight import dense, shape

Pair = tuple[Tensor, Tensor]
"""A [rank, in] and B [out, rank], the scale in B."""
MAGNITUDE = ".lora_magnitude_vector"


class LowRankConverter(Converter):
    """Pairs of matrices; of a method whose adapters hold more, `lacking` gives what a pair lacks.

    It takes the rank and the A of each site, and returns tensors of the method that change nothing.
    """

    names: ClassVar[Mapping[str, str]] = {"lora_A.weight": "A", "lora_B.weight": "B"}
    needs: ClassVar[tuple[str, ...]] = ("r", "lora_alpha")
    whole: ClassVar[str] = "part of a plain LoRA adapter"
    of_stacks: ClassVar[bool] = True

    def __init__(
        self,
        method: type[Any],
        peft_type: str | None = None,
        lacking: Callable[[int, Mapping[str, Tensor]], Tensors] = lambda rank, downs: {},
        has_dropout: bool = True,
    ):
        super().__init__(method, peft_type)
        self.lacking, self.has_dropout = lacking, has_dropout

    def reads(self, config: Mapping[str, Any]) -> bool:
        return super().reads(config) and not config.get("use_dora")

    def write(self, method: LoRA, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        # Every module's alpha equals its rank there: the reader multiplies by one whatever the pattern of ranks was.
        linears = {key: adapter for key, adapter in adapters.items() if adapter.site.stack is None}
        pairs = {key: (*adapter.exported(), adapter.site) for key, adapter in linears.items()}
        modules = join(method, pairs) if pairs or not adapters else {}
        check_not_taken_for_experts(modules, model)
        stacks = {path: (adapters[site.id].exported(), site) for path, site in stack_paths(_sites(adapters)).items()}
        ranks = {f"^{re.escape(path)}$": down.shape[0] for path, (down, _) in modules.items()}
        ranks |= {f"^{re.escape(site.id)}$": down.shape[1] for (down, _), site in stacks.values()}
        first = next(iter(ranks.values()))
        others = {path: rank for path, rank in ranks.items() if rank != first}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": first,
            "lora_alpha": first,
            "lora_dropout": method.dropout if self.has_dropout else 0.0,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted(modules),
            "inference_mode": True,
        }
        chosen, biases = beside.told(method.bias, method, set(modules), model)
        config |= chosen
        if stacks:
            config["target_parameters"] = sorted(site.id for _, site in stacks.values())
        laid = {**modules, **{path: packed_pairs(site, *pair) for path, (pair, site) in stacks.items()}}
        return config, biases | self.named((path, {"A": down, "B": up}) for path, (down, up) in laid.items())

    def read_all(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> list[tuple[Method, Tensors]]:
        pairs = dict(tensors)
        biases, shifts = beside.taken(config, pairs)
        method, state = self.read(config, pairs, layout)
        scales = {site.path: cast(LoRA, method).scale_at(site) for site in method.sites(layout)} if shifts else {}
        return [(method, state | biases), *beside.shifted(shifts, scales)]

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        start = moved(config)
        matrices: dict[str, Tensors] = {"A": {}, "B": {}}
        for path, name, tensor in self.entries(tensors):
            if tensor.ndim != 2:
                raise PeftkitError(
                    f"adapter_model.safetensors: {path}.lora_{name} has the shape {list(tensor.shape)}, not two sides."
                )
            matrices[name][path] = tensor
        downs = matrices["A"]
        alone = downs.keys() ^ matrices["B"].keys()
        if alone:
            raise PeftkitError(f"adapter_model.safetensors: lora_A or lora_B is missing for {sorted(alone)}.")
        for theirs, site in _named_stacks(config, layout).items():
            if theirs in downs:
                pair = unpacked_pairs(site, downs.pop(theirs), matrices["B"].pop(theirs))
                downs[site.id], matrices["B"][site.id] = pair
                if start is not None:
                    raise PeftkitError(f"adapter_config.json: init_lora_weights is '{start}' at the stack {site.id}.")
        alphas, alpha = config.get("alpha_pattern") or {}, config["lora_alpha"]
        ranks = {path: down.shape[-2] for path, down in downs.items()}
        scaled = {path: float(_pattern(alphas, path, alpha)) for path in downs}
        stable = bool(config.get("use_rslora"))
        method = self.method(
            rank=config["r"],
            alpha=float(alpha),
            dropout=float(config.get("lora_dropout") or 0),
            targets=tuple(downs),
            rank_pattern={path: rank for path, rank in ranks.items() if rank != config["r"]},
            alpha_pattern={path: own for path, own in scaled.items() if own != alpha},
            rank_stabilised=stable,
            bias=beside.bias_of(config),
            **({} if start is None else {"init": start}),
        )
        state = {f"{path}/{name}": tensor for name, paths in matrices.items() for path, tensor in paths.items()}
        for path, rank in ranks.items() if start is not None else ():
            scale = scaled[path] / (math.sqrt(rank) if stable else rank)
            state |= taken_out(str(start), path, _module(layout, path), rank, scale)
        return method, state | self.lacking(int(config["r"]), downs)


def _module(layout: Layout, path: str) -> nn.Module:
    if path not in layout.modules:
        raise PeftkitError(f"adapter_model.safetensors: there is no module {path} in this {layout.kind} model.")
    return layout.modules[path]


def _sites(adapters: Mapping[str, Any]) -> list[Site]:
    return [adapter.site for adapter in adapters.values()]


def _named_stacks(config: Mapping[str, Any], layout: Layout) -> dict[str, Site]:
    """Return the stacks that a configuration targets, by the paths of their pairs."""
    targets = config.get("target_parameters") or []
    named = [site for site in layout.stacks if any(f".{site.id}".endswith(f".{target}") for target in targets)]
    return stack_paths(named)


def join(method: Method, pairs: Mapping[str, tuple[Tensor, Tensor, Site]]) -> dict[str, Pair]:
    """Return one pair for each module path; pairs of rank 0 are left out, and PeftkitError where no other is left.

    The parts of a fused module become one pair of the summed rank; its B holds each part in its own rows.
    """
    modules: dict[str, list[Pair]] = {}
    for down, up, site in pairs.values():
        if len(down):
            modules.setdefault(site.path, []).append((down, up if site.rows is None else _widen(up, site)))
    if not modules:
        raise PeftkitError(f"{method.name}: every rank is closed, and Hugging Face peft has no adapter of rank 0.")
    return {
        path: (torch.cat([d for d, _ in own]), torch.cat([u for _, u in own], dim=1)) for path, own in modules.items()
    }


def _widen(up: Tensor, site: Site) -> Tensor:
    sizes = shape(site.module)
    assert sizes is not None
    assert site.rows is not None
    return site.rows.put(up.new_zeros(up.shape[1], sizes[0]), up.T).T


def _pattern(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    try:
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)
    except re.error as error:
        raise PeftkitError(f"adapter_config.json: a key of alpha_pattern is no pattern of names ({error}).") from None


class CopiesConverter(LowRankConverter):
    """Masked copies of a pair, written as the pair of all; a pair is read as one copy under a mask of ones."""

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        method, state = super().read(config, tensors, layout)
        return replace(cast(CapaBoost, method), copies=1, density=1.0), state


class DecomposedConverter(LowRankConverter):
    """The magnitudes of rows too; rows of a fused module that no adapter has keep the length of the frozen weight's."""

    of_stacks: ClassVar[bool] = False

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == self.peft_type and bool(config.get("use_dora"))

    def write(self, method: LoRA, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        config, tensors = super().write(method, adapters, model)
        for adapter in adapters.values():
            key, rows, mine = f"{PREFIX}{adapter.site.path}{MAGNITUDE}", adapter.site.rows, adapter.m.detach()
            if rows is not None:
                whole = tensors.get(key)
                mine = rows.put(row_squares(dense(adapter.site.module)).sqrt() if whole is None else whole, mine)
            tensors[key] = mine
        return {**config, "use_dora": True}, tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        pairs = {key: tensor for key, tensor in tensors.items() if MAGNITUDE not in key}
        method, state = super().read({**config, "use_dora": False}, pairs, layout)
        for key in set(tensors) - set(pairs):
            state[f"{key.partition(MAGNITUDE)[0].removeprefix(PREFIX)}/m"] = tensors[key].float().flatten()
        return method, state


class TripletsConverter(Converter):
    """Singular vectors and values; scale and l go into P, so that a fused module's parts become one set of triplets.

    lora_E undoes the reader's own scale; modules without a triplet are left out.
    """

    names: ClassVar[Mapping[str, str]] = {"lora_A": "Q", "lora_B": "P", "lora_E": "l"}
    needs: ClassVar[tuple[str, ...]] = ("init_r", "lora_alpha")
    whole: ClassVar[str] = "part of a plain adapter"

    def write(self, method: AdaLoRA, adapters: Mapping[str, Triplets], model: nn.Module) -> tuple[Config, Tensors]:
        pairs = {k: (a.Q.detach(), a.P.detach() * (a.l.detach() * a.scale), a.site) for k, a in adapters.items()}
        modules = join(method, pairs)
        ranks = {path: down.shape[0] for path, (down, _) in modules.items()}
        start = max(ranks.values())
        value = (start + EPSILON) / start
        pattern = {f"{p}.lora_E": [i < rank for i in range(start)] for p, rank in ranks.items() if rank < start}
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
        triplets = ((p, {"Q": q, "P": up, "l": q.new_full((len(q), 1), value)}) for p, (q, up) in modules.items())
        return config, self.named(triplets)

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state, ranks = {}, {}
        for path, name, tensor in self.entries(tensors):
            state[f"{path}/{name}"] = tensor.flatten() if name == "l" else tensor
            if name == "l":
                ranks[path] = tensor.shape[0]
        if not ranks:
            raise PeftkitError("adapter_model.safetensors: no tensor lora_E, which every ADALORA adapter has.")
        start, scale = max(ranks.values()), float(config["lora_alpha"]) / (config["init_r"] + EPSILON)
        method = self.method(
            rank=min(ranks.values()),
            initial_rank=start,
            alpha=scale * (start + EPSILON),
            dropout=float(config.get("lora_dropout") or 0),
            targets=tuple(ranks),
        )
        return method, state


for entry in (
    LowRankConverter(LoRA, "LORA"),
    CopiesConverter(CapaBoost),
    LowRankConverter(LoRADropout, has_dropout=False),
    LowRankConverter(LoRAFA),
    LowRankConverter(LoRAPlus),
    LowRankConverter(DyLoRA, lacking=lambda rank, downs: {"shared/width": torch.tensor([rank])}),
    LowRankConverter(MoSLoRA, lacking=lambda _, downs: {f"{p}/M": torch.eye(len(A)) for p, A in downs.items()}),
    LowRankConverter(SoRA, lacking=lambda _, downs: {f"{p}/g": torch.ones(len(A)) for p, A in downs.items()}),
    DecomposedConverter(DoRA, "LORA"),
    TripletsConverter(AdaLoRA, "ADALORA"),
):
    CONVERTERS.add(entry.method.name, entry)
