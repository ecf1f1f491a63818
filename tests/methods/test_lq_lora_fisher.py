"""LQ-LoRA weighed by the Fisher information: its margins, the weighted optimum, and runs on packed bases."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_measured_inits import BATCH, ROWS, logits

from peftkit import train
from peftkit.adaptation import TENSORS, attach
from peftkit.errors import PeftkitError
from peftkit.evaluation import answers
from peftkit.layers.probing import margins
from peftkit.methods.inits.lq_lora_fisher import lq_lora_fisher, roots
from peftkit.methods.lora import LoRA
from peftkit.models.quantize import Quantization, forget_originals, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.quantization.weight import dense

METHOD = LoRA(init="lq-lora-fisher", targets=("q", "down"), rank=4)


def packed(name: str = "nf2"):
    model = tiny("llama")
    quantize(model, Quantization(QUANTIZERS[name].from_options({"block_size": 16})))
    return model


def test_the_margins_are_means_of_squared_gradients_of_single_examples():
    model = tiny("llama")
    bare = attach(model, [LoRA(targets=("q", "down"))])
    found = margins(model, bare.parts[0].adapters, ROWS)
    for adapter in bare.adapters():
        weight: Any = adapter.site.module.weight.requires_grad_()
        squares = torch.zeros_like(weight)
        for ids, _ in ROWS:
            scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            loss = -scores.gather(1, ids[0, 1:, None]).sum()
            squares += torch.autograd.grad(loss, weight)[0].square() / len(ROWS)
        weight.requires_grad_(False)
        expected = torch.cat([squares.mean(1), squares.mean(0)])
        torch.testing.assert_close(found[adapter.site.id], expected, rtol=1e-4, atol=1e-10)


def test_the_pair_is_the_weighted_optimum_of_what_is_not_packed():
    """Of a weight that packing keeps whole the error is that of the pair alone, and its gradient is zero."""
    adapter: Any = attach(tiny("llama"), [LoRA(targets=("q",), rank=4)]).parts[0].adapters.popitem()[1]
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    means = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.1
    rows, columns = (roots(part) for part in means.split(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(adapter), "exact", False)
        patch.setattr(type(adapter), "rounded", lambda self, rest: torch.zeros_like(rest))
        down, up, taken, _ = lq_lora_fisher(adapter, weight, means)
    assert torch.equal(down, taken)
    down, up = down.requires_grad_(), (adapter.scale * up).requires_grad_()
    error = (rows[:, None] * (weight - up @ down) * columns).square().sum()
    assert all(slope.abs().max() <= 1e-4 for slope in torch.autograd.grad(error, (down, up)))
    values = torch.linalg.svdvals(rows[:, None] * weight * columns)
    assert error.item() == pytest.approx(float(values[4:].square().sum()), rel=1e-5)


def test_the_weighted_errors_fall_and_are_below_those_of_unweighted_pairs(caplog):
    model, plain = packed(), tiny("llama")
    adaptation = attach(model, [METHOD])
    seen = margins(model, adaptation.parts[0].adapters, ROWS)
    with caplog.at_level("INFO", "peftkit"):
        adaptation.prepare([BATCH])
    told = {record.args[0]: record.args[1:] for record in caplog.records if "lq-lora-fisher" in record.msg}
    other = attach(packed(), [LoRA(init="lq-lora", targets=("q", "down"), rank=4)])
    for site, adapter in adaptation.parts[0].adapters.items():
        weight = dense(plain.get_submodule(site)).detach()
        rows, columns = (roots(part) for part in seen[site].split(list(weight.shape)))
        values = [float(error) for error in told[site][0].split(", ")]
        assert all(later < earlier for earlier, later in itertools.pairwise(values))
        assert values[-1] < told[site][1]

        def error(one, weight=weight, rows=rows, columns=columns):
            rest = weight - dense(one.site.module) - one.delta(None)
            return float(torch.linalg.norm((rows[:, None] * rest * columns).detach()))

        assert error(adapter) == pytest.approx(values[-1], rel=1e-3)
        assert error(adapter) < error(other.parts[0].adapters[site])


def test_until_then_the_model_is_the_packed_one_and_the_start_is_read_again():
    before = logits(packed())
    adaptation = attach(packed(), [METHOD])
    assert torch.equal(logits(adaptation.model), before)
    adaptation.prepare([BATCH])
    after, plain = logits(adaptation.model), logits(tiny("llama"))
    assert (after - plain).square().mean() < (before - plain).square().mean()
    other = attach(packed(), [METHOD], seed=9, loading=True)
    other.load_state({key: tensor.clone() for key, tensor in adaptation.state().items()})
    assert torch.equal(logits(other.model), after)


def test_dense_weights_and_lost_originals_are_refused_at_once():
    with pytest.raises(PeftkitError, match=r"init 'lq-lora-fisher' answers what packing loses, .* is not packed"):
        attach(tiny("llama"), [METHOD])
    model = packed()
    forget_originals(model)
    with pytest.raises(PeftkitError, match=r"init 'lq-lora-fisher' .*, and the original weight of .* is not there"):
        attach(model, [METHOD])


def test_a_run_measures_starts_and_answers(tmp_path, caplog):
    recipe = {
        "model": "bundled/tiny",
        "quantization": {"format": "nf3", "init": "lq-lora-fisher"},
        "method": {"lora": {"rank": 4, "targets": "linear"}},
        "dataset": {"name": "bundled/e2e", "limit": 16},
        "train": {"max_steps": 2, "batch_examples": 4, "learning_rate": 1e-4},
        "generation": {"max_new_tokens": 6},
    }
    with caplog.at_level("INFO", "peftkit"):
        run = train(recipe, tmp_path / "run")
    told = [record for record in caplog.records if "lq-lora-fisher" in record.msg]
    tensors = load_file(Path(run) / "adapter" / TENSORS)
    taken = [key for key in tensors if key.endswith("/B1")]
    assert len(taken) == len(told) > 0
    assert all(bool(tensors[key].any()) for key in taken)
    assert all(float(error) < record.args[2] for record in told for error in record.args[1].split(", ")[-1:])
    assert len(answers(Path(run), ["name[The Mill]"])) == 1
