"""The sides that the benchmark of training sets beside each other, by name, and ours among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import hugging_face
import torch
import torch.nn.functional as F
from cases import RATE, Case, Gate, Planned, llama, started
from torch import Tensor, nn

from peftkit.data.encode import IGNORED, Encoded
from peftkit.engine import outputs
from peftkit.engine.compiled import Compiled
from peftkit.engine.engine import Arrangement, choose
from peftkit.engine.head import Head
from peftkit.kernels import fused_attention, low_rank
from peftkit.ports import seat, shared_input
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import TrainSection
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop

FULL = Arrangement()
ARRANGEMENTS = {
    "ours": FULL,
    "ours-unshared": replace(FULL, share=False),
    "ours-padded": replace(FULL, flat=False),
    "ours-plain": replace(FULL, fused=False),
    "ours-separate": replace(FULL, together=False),
    **dict.fromkeys(("ours-whole", "ours-derived", "ours-unfused", "ours-products", "ours-compiled"), FULL),
}
"""Ours as it is by default, and with one part of the engine switched off, or compiled blocks switched on."""
PARTS = {
    "ours-unshared": "shared beginnings",
    "ours-padded": "packing (and with it sharing)",
    "ours-whole": "head in chunks",
    "ours-derived": "derivative of the head's loss",
    "ours-plain": "fused norms, gates and rotary positions",
    "ours-separate": "layers of one input together",
    "ours-unfused": "LoRA's own function",
    "ours-products": "fused attention",
}
"""What each side is without."""


def unfused(y: Tensor, pair: low_rank.Pair) -> Tensor:
    """Return y + scale up down inside, written out."""
    inner = F.linear(pair.inside.to(y.dtype), pair.down.to(y.dtype))
    return y + F.linear(inner, pair.up.to(y.dtype)) * pair.scale


def linears_unfused(x: Tensor, linears: Sequence[Any], pairs: Sequence[Any], sizes: Any = None) -> tuple[Tensor, ...]:
    """Return what `low_rank.linears_with_pairs` does for pairs of all tokens, written out."""
    return tuple(unfused(F.linear(x, *linear), pair) for linear, (pair,) in zip(linears, pairs, strict=True))


def whole_sum(head: Head, function: Any, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the sum of a function of tokens of all logits at once, by torch's derivative."""
    return function.total(head.logits(hidden), targets, weights)


def switch_off(side: str) -> None:
    """Take out, in this process, what no arrangement switches."""
    given: Any
    if side == "ours-unfused":
        for given in (seat, shared_input):
            given.add_pair, given.linears_with_pairs = unfused, linears_unfused
    elif side == "ours-whole":
        given = outputs
        given.chunked_sum = whole_sum
    elif side == "ours-derived":
        given = Head
        given.plain = lambda head: None
    elif side == "ours-products":
        given = fused_attention
        given.possible = lambda *given, **named: False


def ours(case: Case, gate: Gate) -> None:
    """Run the training loop of peftkit."""

    def pack(weight: Tensor) -> nn.Module:
        return PackedLinear.of(weight, None, QUANTIZERS["nf4"]())

    switch_off(case.side)
    model = llama(case, pack if case.technique.packed else None)
    gate.loaded()
    loop = our_loop(case, model)
    loop.passes.open()
    gate.begin()
    for _ in range(case.steps):
        record = loop.run_step()
        if isinstance(loop.passes, Compiled) and not loop.passes.blocks:
            raise SystemExit("ours-compiled: the blocks cannot be compiled")
        gate.passed(record["loss"], record["grad_norm"])


def our_loop(case: Case, model: nn.Module) -> Loop:
    """Build our loop as a run has it: here alone is decided what ours is."""
    adaptation = started(case, model, keep_base=False)
    soft = list(adaptation.soft_ids)
    rows = [Encoded([*soft, *row.ids], [*[IGNORED] * len(soft), *row.labels]) for row in case.work().rows]
    section = TrainSection(
        max_steps=case.steps,
        batch_examples=case.rows,
        learning_rate=RATE,
        schedule="constant",
        warmup=0,
        compile=case.side == "ours-compiled",
    )
    batches = Planned(rows, batch_examples=case.rows)
    device = torch.device(case.device)
    engine, notices = choose(model, rows, 0, device, ARRANGEMENTS[case.side])
    if notices:
        raise SystemExit(f"ours: {notices[0]}")
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=device, precision=case.precision)


SIDES: dict[str, Callable[[Case, Gate], None]] = {
    **dict.fromkeys(ARRANGEMENTS, ours),
    "trainer": hugging_face.trainer,
    "bare": hugging_face.bare,
    "trl": hugging_face.trl,
    "unsloth": hugging_face.unsloth,
}


def available(switches: bool = False) -> list[str]:
    """List the sides that can run here: other projects' where they are installed, ours switched off if wanted."""
    missing = [name for name in ("trl", "unsloth") if find_spec(name) is None] + (
        [] if switches else list(ARRANGEMENTS)[1:]
    )
    return [name for name in SIDES if name not in missing]
