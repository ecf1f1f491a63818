"""What is saved for the backward pass is counted by its owner, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from torch import Tensor, nn

from peftkit.estimation.step import largest, run_step
from peftkit.profiling import measure, owners
from peftkit.profiling.owners import LOSS
from peftkit.profiling.saved import Saved
from peftkit.profiling.times import Ranges
from peftkit.recipe import load
from peftkit.training.preparation import Prepared, prepare

FLOAT, RANGES = 4, Ranges()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiled")


def prepared(folder: Path, method: Any = "lora", **train: Any) -> Prepared:
    """Set up a run of a two-layer model of width 16, whose feed-forward blocks are as narrow."""
    recipe = make_recipe(folder, method, **train)
    recipe["model"]["init"] |= {"intermediate_size": 16, "attention_dropout": 0.0}
    return prepare(load(recipe), phase=RANGES)


class _Hoard(torch.autograd.Function):
    """The identity, that keeps a tensor eight times as wide as what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.repeat(*[1] * (x.ndim - 1), 8))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        assert ctx.saved_tensors[0].shape[-1] == 8 * grads[0].shape[-1]
        return grads[0]


class Hoarder(nn.Module):
    """A module around another one that keeps what it need not."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the inner module does."""
        return self.inner(_Hoard.apply(x))


@pytest.mark.parametrize("packing", [True, False])
def test_a_planted_module_that_keeps_a_wide_tensor_is_the_largest_owner(folder, packing):
    run = prepared(folder, {"lora": {"targets": ["q", "v"]}}, packing=packing)
    model: Any = run.loop.adaptation.model
    for layer in model.model.layers:
        layer.mlp = Hoarder(layer.mlp)
    result = measure.profile_loop(run, RANGES, steps=1)
    each = result.batch["computed_tokens"] * 8 * 16 * FLOAT
    kind = measure.by_saved(result.kinds())[0]
    assert (kind.label, kind.name, kind.modules, kind.saved) == ("Hoarder (mlp)", "model.layers.*.mlp", 2, 2 * each)
    largest_two = measure.by_saved(result.paths)[:2]
    assert {row.name: row.saved for row in largest_two} == {"model.layers.0.mlp": each, "model.layers.1.mlp": each}
    times = {row.name: row for row in result.paths}
    assert times["model.layers.0.mlp"].backward > 0
    assert times["model.layers.0.mlp"].total >= times["model.layers.0.mlp.inner"].total


def test_without_the_plant_no_module_of_that_kind_is_named(folder):
    result = measure.profile_loop(prepared(folder, {"lora": {"targets": ["q", "v"]}}), RANGES, steps=1)
    assert all("Hoarder" not in row.label for row in result.paths)
    assert result.saved == sum(row.saved for row in result.kinds())
    root = next(row for row in result.paths if row.name == owners.WHOLE)
    loss = next(row for row in result.paths if row.name == LOSS)
    assert root.total_saved + loss.saved == result.saved


@pytest.mark.parametrize("method", ["lora", "full", "prefix-tuning"])
def test_recomputation_takes_from_the_sum_what_it_takes_from_the_estimate(folder, method):
    """The estimate follows all memory of a step without computing; it has the head's scratch in it too.

    The gradient of a trained head is made and kept in the forward pass, and is no activation there.
    """
    saved, alive = [], []
    for checkpointing in (False, True):
        run = prepared(folder, method, gradient_checkpointing=checkpointing)
        loop = run.loop
        batch = largest(run.batches, loop.adaptation.model, loop.pad_id)
        saved.append(sum(measure.saved_by(loop.passes.plain, batch)[0].values()))
        result = run_step(loop.adaptation.model, loop.adaptation, batch, loop.section, loop.device, "fp32").activations
        head: Any = loop.adaptation.model
        trained = (weight for weight in head.get_output_embeddings().parameters() if weight.requires_grad)
        alive.append(result + FLOAT * sum(weight.numel() for weight in trained))
    assert all(one < other for one, other in zip(saved, alive, strict=True))
    assert saved[0] - saved[1] == pytest.approx(alive[0] - alive[1], rel=0.1)


@pytest.mark.parametrize("method", ["serial-adapter", "parallel-adapter"])
def test_what_a_block_computes_within_its_adapter_is_the_blocks_own(folder, method):
    sizes = []
    for chosen in (method, "bitfit"):
        run = prepared(folder, chosen)
        loop = run.loop
        batch = largest(run.batches, loop.adaptation.model, loop.pad_id)
        result, _ = measure.saved_by(loop.passes.plain, batch)
        sizes.append(result["model.layers.1.mlp"])
        adapters = [path for path in result if path.startswith("model.layers.1.mlp.") and ".seated." in path]
        assert bool(adapters) == (chosen == method)
    assert sizes[0] == sizes[1]


def test_a_storage_counts_once_for_its_first_owner_and_a_parameter_never():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Softmax(-1))
    x = torch.randn(5, 4, requires_grad=True)
    saved = Saved()
    with saved.watching(model):
        loss = model(x).square().sum()
    # The second linear layer reads what the first Tanh returned and kept; the square keeps what Softmax did.
    assert saved.sizes(model) == {"0": 5 * 4 * FLOAT, "1": 5 * 3 * FLOAT, "3": 5 * 2 * FLOAT}
    loss.backward()
    assert saved.sizes(model) == {}


def test_what_is_saved_outside_is_the_losss_and_what_is_dropped_counts_no_more():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    x = torch.randn(5, 4)
    saved = Saved()
    with saved.watching(model):
        (gradient,) = torch.autograd.grad(model(x).tanh().sum(), model[0].weight)
        assert saved.sizes(model) == {}
        loss = (model(x) * gradient.sum()).exp().sum()
    assert saved.sizes(model)["0"] == 5 * 4 * FLOAT
    assert saved.sizes(model)[LOSS] >= 5 * 3 * FLOAT
    assert loss.requires_grad


def test_hooks_are_gone_afterwards(folder):
    run = prepared(folder)

    def hooks() -> list[int]:
        modules = run.loop.adaptation.model.modules()
        return [key for module in modules for key in (*module._forward_hooks, *module._forward_pre_hooks)]

    before = hooks()
    measure.profile_loop(run, RANGES, steps=1)
    assert RANGES._open == []
    assert hooks() == before
