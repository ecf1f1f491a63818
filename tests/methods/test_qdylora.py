"""QDyLoRA: DyLoRA on a base of 4 bits is, at every rank and from one run, LoRA of that rank on the same base."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftkit import evaluate, train
from peftkit.adaptation import DESCRIPTION, TENSORS, attach
from peftkit.assembly import assemble, read_run
from peftkit.methods.dylora import DyLoRA
from peftkit.methods.lora import LoRA
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS

IDS = torch.arange(5, 25).view(2, 10)
RECIPE = {
    "model": "bundled/tiny",
    "quantization": "nf4",
    "method": {"dylora": {"targets": "linear", "alpha": 16}},
    "rank": 8,
    "dataset": {"name": "bundled/e2e", "limit": 24},
    "train": {"max_steps": 6, "batch_examples": 4, "learning_rate": 0.01},
    "eval": {"limit": 2},
    "generation": {"max_new_tokens": 6},
}


def packed():
    model = tiny("llama")
    quantize(model, Quantization(QUANTIZERS["nf4"].from_options({"block_size": 16})))
    return model


@pytest.mark.parametrize("update", ["all", "last"])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_step_at_a_drawn_rank_is_that_of_lora_on_the_packed_base(update, width):
    model, other = packed(), packed()
    dynamic = attach(model, [DyLoRA(rank=4, alpha=6.0, update=update, targets="linear")])
    plain = attach(other, [LoRA(rank=width, alpha=6.0, targets="linear")])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in dynamic.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
            cut = parameter[:width] if key.endswith("/A") else parameter[:, :width]
            dict(plain.parameters())[key].copy_(cut)
        next(dynamic.adapters()).shared.width.fill_(width)
    losses = []
    for one in (model, other):
        loss = one.train()(input_ids=IDS).logits.square().mean()
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    wanted = {key: p.grad for key, p in plain.parameters() if p.grad is not None}
    for key, parameter in dynamic.parameters():
        assert parameter.grad is not None
        rows = parameter.grad if key.endswith("/A") else parameter.grad.T
        expected = wanted[key] if key.endswith("/A") else wanted[key].T
        assert not rows[width:].any()
        learning = slice(width - 1 if update == "last" else 0, width)
        assert not rows[: learning.start].any()
        torch.testing.assert_close(rows[learning], expected[learning], rtol=1e-3, atol=1e-6)


def test_one_run_gives_every_rank(tmp_path):
    run = Path(train(RECIPE, tmp_path / "run"))
    tensors = load_file(run / "adapter" / TENSORS)
    scores, found = [], []
    for rank in (1, 2, 5, 8):
        cut = tmp_path / f"rank-{rank}"
        shutil.copytree(run, cut)
        path = cut / "adapter" / DESCRIPTION
        description = json.loads(path.read_text(encoding="utf-8"))
        description["methods"][0]["options"]["use_rank"] = rank
        path.write_text(json.dumps(description), encoding="utf-8")
        subject = assemble(read_run(cut), cut / "adapter")
        with torch.no_grad():
            found.append(subject.model(input_ids=IDS).logits)
        subject.adaptation.remove()
        lora = attach(subject.module, [LoRA(rank=rank, alpha=16, targets="linear")])
        lora.load_state({key: _cut(key, tensor, rank) for key, tensor in tensors.items() if "shared" not in key})
        with torch.no_grad():
            torch.testing.assert_close(found[-1], subject.model(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
        scores.append(evaluate(cut)["scores"])
    assert len(scores) == 4
    assert all((one - other).abs().max() > 1e-3 for one, other in pairwise(found))


def _cut(key: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    return (tensor[:rank] if key.endswith("/A") else tensor[:, :rank]).clone()
