"""Saved adapters of one base made into one, by weighted sums of their tensors or of the changes that they make.

Sums of changes of a base are task arithmetic (Ilharco et al. 2022, arXiv:2212.04089) and means of weights model soups
(Wortsman et al. 2022, arXiv:2203.05482); LoraHub (Huang et al. 2023, arXiv:2307.13269) sums the matrices A and B of
LoRA each by itself, which is `linear` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.adaptation.adaptation import Adaptation
from peftkit.adaptation.attach import attach
from peftkit.adaptation.changes import Change, bounded, change_of, stacked, truncated
from peftkit.adaptation.description import describe_adapter
from peftkit.adaptation.folder import TENSORS, check_base, check_finite, load_adapter
from peftkit.errors import PeftkitError, unknown
from peftkit.methods.lora import LoRA

NAME = "combined"
"""Under which name sources and result are attached."""
FREE = ("learning_rate",)
"""Options that may differ between adapters whose tensors are summed: what is computed does not depend on them."""


@dataclass(frozen=True)
class Source:
    """A saved adapter that is combined."""

    name: str
    """What messages call it."""
    folder: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Combined:
    """What came of it, attached to the base."""

    adaptation: Adaptation
    error: float | None = None
    """|D - B A| / |D| over all sites, for the sum D of the changes; None where nothing is left out."""


def combine(model: nn.Module, sources: Sequence[Source], how: str, rank: int | None = None) -> Combined:
    """Attach to the bare base `model` what the saved adapters of `sources` combine to in one of `WAYS`.

    Raises PeftkitError, with nothing attached, for an unknown way, fewer than two sources, adapters that do not stand
    on one base or hold NaN or infinity, and for what the way cannot do, with the reason.
    """
    check_sources(sources, how, rank)
    return WAYS[how](model, sources, rank)


def check_sources(sources: Sequence[Source], how: str, rank: int | None = None) -> dict[str, Any]:
    """Refuse what can be refused without the model; returns what the first description says of the base."""
    if how not in WAYS:
        raise PeftkitError(f"--how: {unknown('way to combine', how, WAYS)}")
    if len(sources) < 2:
        raise PeftkitError(f"found {len(sources)} adapter, and at least two are combined: name another run.")
    if rank is not None and WAYS[how] is not svd:
        raise PeftkitError(f"--rank {rank} is what 'svd' cuts the changes to, and '{how}' keeps all of them.")
    if rank is not None and rank < 1:
        raise PeftkitError(f"--rank: found {rank}; allowed: a whole number from 1.")
    infinite = next((source for source in sources if not math.isfinite(source.weight)), None)
    if infinite is not None:
        raise PeftkitError(f"--weights: found {infinite.weight} for {infinite.name}; allowed: finite numbers.")
    bases = [describe_adapter(source.folder)["base"] for source in sources]
    for source, base in zip(sources, bases, strict=True):
        check_base(sources[0].name, bases[0], source.name, base)
    return bases[0]


def linear(model: nn.Module, sources: Sequence[Source], rank: int | None = None) -> Combined:
    """Sum each trained tensor by itself, sum_i w_i t_i; of the model's own, t + sum_i w_i (t_i - t) with the base's t.

    All adapters have the same methods and options. For LoRA the product of the sums of A and of B is not the sum of the
    products, which `concatenate` gives. Where a tensor that does nothing is not zero, as the ones of a scale, only
    weights that add up to one leave it so. A frozen tensor has to be the same in all.
    """
    methods = describe_adapter(sources[0].folder)["methods"]
    for source in sources[1:]:
        _check_methods(sources[0], methods, source)
    total: dict[str, Tensor] = {}
    for source in sources:
        with _opened(model, source) as adaptation:
            _check_tensors(total, adaptation, source, sources[0])
            trained = dict(adaptation.parameters())
            for key, tensor in adaptation.state().items():
                part = tensor * source.weight if key in trained else tensor.clone()
                total[key] = total[key] + part if key in trained and key in total else part
    adaptation = load_adapter(model, sources[0].folder, None, NAME)
    left = 1 - math.fsum(source.weight for source in sources)
    for position, part in enumerate(adaptation.parts):
        for name in part.own if left else ():
            assert part.base is not None
            total[f"{position}/own/{name}"] += left * part.base[name].float()
    adaptation.load_state(total)
    return Combined(adaptation)


def average(model: nn.Module, sources: Sequence[Source], rank: int | None = None) -> Combined:
    """Take the weighted mean of each trained tensor: `linear` with weights that are divided by their sum."""
    total = math.fsum(source.weight for source in sources)
    if total == 0:
        raise PeftkitError("--weights: they add up to 0, and a mean divides by their sum: choose others, or 'linear'.")
    return linear(model, [replace(source, weight=source.weight / total) for source in sources])


def concatenate(model: nn.Module, sources: Sequence[Source], rank: int | None = None) -> Combined:
    """Sum the changes exactly, W + sum_i w_i s_i B_i A_i, as plain LoRA of the summed rank at a scale of one.

    Rows of A and columns of B stand one after the other; a site that an adapter lacks has those of the others. Adapters
    of any ranks, scales, targets and methods, each of which adds a low-rank pair to the base's weight and no more.
    """
    changes = _changes(model, sources)
    return Combined(_attach_pairs(model, [stacked(at_site) for at_site in changes]))


def svd(model: nn.Module, sources: Sequence[Source], rank: int | None = None) -> Combined:
    """Cut the sum of `concatenate` at each site to the nearest change of `rank`, by default the largest of a source."""
    changes = _changes(model, sources)
    rank = rank or max(change.rank for at_site in changes for change in at_site)
    cut, kept, lost = [], 0.0, 0.0
    for at_site in changes:
        change, values = truncated(stacked(at_site), rank)
        cut.append(change)
        kept, lost = kept + float(values[:rank].square().sum()), lost + float(values[rank:].square().sum())
    error = math.sqrt(lost / (kept + lost)) if kept + lost else 0.0
    return Combined(_attach_pairs(model, cut), error)


Way = Callable[[nn.Module, Sequence[Source], int | None], Combined]
WAYS: dict[str, Way] = {"linear": linear, "average": average, "concatenate": concatenate, "svd": svd}
"""How adapters are combined, by the name on the command line."""


@contextmanager
def _opened(model: nn.Module, source: Source) -> Iterator[Adaptation]:
    """Attach a source inside; one that holds NaN or infinity is refused."""
    adaptation = load_adapter(model, source.folder, None, NAME)
    try:
        check_finite(source.folder / TENSORS, adaptation.state())
        yield adaptation
    finally:
        adaptation.remove()


def _check_methods(one: Source, methods: Sequence[Mapping[str, Any]], other: Source) -> None:
    its = describe_adapter(other.folder)["methods"]
    names, other_names = ([method["name"] for method in each] for each in (methods, its))
    if names != other_names:
        raise PeftkitError(
            f"{one.name} is {' + '.join(names)} and {other.name} is {' + '.join(other_names)}: tensors are summed over "
            "adapters of the same methods. The changes of different low-rank ones are summed by 'concatenate'."
        )
    for mine, theirs in zip(methods, its, strict=True):
        keys = sorted({*mine["options"], *theirs["options"]} - set(FREE))
        values = [(key, mine["options"].get(key), theirs["options"].get(key)) for key in keys]
        differing = next((value for value in values if value[1] != value[2]), None)
        if differing is not None:
            key, value, other_value = differing
            raise PeftkitError(
                f"{mine['name']}: {key} is {value!r} in {one.name} and {other_value!r} in {other.name}: tensors are "
                "summed over adapters of the same options. The changes of different low-rank ones are summed by "
                "'concatenate'."
            )


def _check_tensors(total: Mapping[str, Tensor], adaptation: Adaptation, source: Source, first: Source) -> None:
    """Refuse tensors that cannot be summed to those before: other ones, other shapes, frozen ones of other values."""
    state, trained = adaptation.state(), dict(adaptation.parameters())
    for key in sorted(set(total) ^ set(state)) if total else ():
        there, lacking = (first, source) if key in total else (source, first)
        raise PeftkitError(f"the tensor {key} is in {there.name} and not in {lacking.name}: they cannot be summed.")
    for key, tensor in total.items():
        both = f"the tensor {key} of {first.name} and {source.name}"
        if tensor.shape != state[key].shape:
            shapes = f"{list(tensor.shape)} and {list(state[key].shape)}"
            raise PeftkitError(f"{both} has the shapes {shapes}: only equal ones can be summed.")
        if key not in trained and not torch.equal(tensor, state[key]):
            raise PeftkitError(
                f"{both} is frozen and has different values: what was trained behind it means different things. "
                "The changes of low-rank adapters are summed by 'concatenate'."
            )


def _changes(model: nn.Module, sources: Sequence[Source]) -> list[list[Change]]:
    """Return the weighted changes of all sources, those of one site together."""
    found: list[Change] = []
    for source in sources:
        with _opened(model, source) as adaptation:
            found += [replace(change, up=change.up * source.weight) for change in _pairs(adaptation, source)]
    modules = {change.site.path for change in found if change.site.rows is None}
    sites: dict[str, list[Change]] = {}
    for change in found:
        change = change.of_module() if change.site.path in modules else change
        sites.setdefault(change.site.id, []).append(change)
    return list(sites.values())


def _pairs(adaptation: Adaptation, source: Source) -> Iterator[Change]:
    """Iterate over the changes of an adaptation; PeftkitError where it does more than add low-rank pairs to weights."""
    for part in adaptation.parts:
        label = f"{source.name} ({part.method.name})"
        if part.own:
            raise PeftkitError(
                f"{label} trains the model's own {next(iter(part.own))}, and low-rank pairs hold no such change: "
                "'average' and 'linear' sum adapters of the same options."
            )
        for adapter in part.adapters.values():
            try:
                change = change_of(adapter)
            except PeftkitError as error:
                raise PeftkitError(f"{label}: {error}") from None
            if change is None:
                raise PeftkitError(
                    f"{label} does not add a low-rank pair, and nothing else, to the weight of {adapter.site.id}, so "
                    "that no pair computes the same: 'average' and 'linear' sum adapters of the same options."
                )
            yield change


def _attach_pairs(model: nn.Module, changes: Sequence[Change]) -> Adaptation:
    """Attach the changes as LoRA at a scale of one; the parts of a fused module become one pair."""
    modules: dict[str, list[Change]] = {}
    for change in changes:
        if change.rank:
            modules.setdefault(change.site.path, []).append(change)
    if not modules:
        raise PeftkitError("the adapters change nothing: every pair has the rank 0.")
    pairs = {path: bounded(stacked([part.of_module() for part in parts])) for path, parts in modules.items()}
    ranks = {path: pair.rank for path, pair in pairs.items()}
    rank = max(ranks.values())
    smaller = {path: own for path, own in ranks.items() if own != rank}
    method = LoRA(
        rank=rank,
        alpha=float(rank),
        targets=tuple(pairs),
        rank_pattern=smaller,
        alpha_pattern={path: float(own) for path, own in smaller.items()},
    )
    adaptation = attach(model, [method], NAME, loading=True)
    tensors = {f"0/{path}/A": pair.down for path, pair in pairs.items()}
    adaptation.load_state(tensors | {f"0/{path}/B": pair.up for path, pair in pairs.items()})
    return adaptation
