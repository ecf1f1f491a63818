"""The sides that the benchmark of training sets beside each other, by name, and ours among them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import hugging_face
import torch
import torch.nn.functional as F
from cases import RATE, Case, Gate, Planned, llama, started
from torch import Tensor, nn

from peftkit.data.encode import IGNORED, Encoded
from peftkit.engine.compiled import Compiled
from peftkit.engine.engine import Arrangement, choose
from peftkit.kernels import low_rank
from peftkit.ports import seat
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import TrainSection
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop

ARRANGEMENTS = {
    "ours": Arrangement(),
    "ours-unshared": Arrangement(share=False),
    "ours-padded": Arrangement(flat=False),
    "ours-whole": Arrangement(flat=False, share=False, apart=False),
    "ours-plain": Arrangement(fused=False),
    "ours-separate": Arrangement(together=False),
    "ours-unfused": Arrangement(together=False),
    "ours-compiled": Arrangement(),
}
"""Ours as it is by default, with its switches off one after another, and with those on that are off by default.

`ours-plain` has the model's own norms, activations and rotary positions, `ours-separate` computes layers that read the
same input one by one, `ours-unfused` leaves the derivative of LoRA's pair to torch too, and `ours-compiled` has
compiled blocks.
"""


def unfused(y: Tensor, pair: low_rank.Pair) -> Tensor:
    """Return y + scale up down inside, written out."""
    inner = F.linear(pair.inside.to(y.dtype), pair.down.to(y.dtype))
    return y + F.linear(inner, pair.up.to(y.dtype)) * pair.scale


def ours(case: Case, gate: Gate) -> None:
    """Run the training loop of peftkit."""

    def pack(weight: Tensor) -> nn.Module:
        return PackedLinear.of(weight, None, QUANTIZERS["nf4"]())

    if case.side == "ours-unfused":
        given: Any = seat
        given.add_pair = unfused
        given.linears_with_pairs = lambda x, linears, pairs: (unfused(F.linear(x, *linears[0]), pairs[0][0]),)
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
