"""What rounding moves is told from what a mistake moves: a merge beyond the bound in fp32 is compared anew in fp64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from model_folders import byte_tokenizer
from torch import Tensor

import zoo
from peftkit.errors import PeftkitError
from peftkit.export import merge, model_folder
from peftkit.models.doubled import doubled
from peftkit.models.quiet import quiet
from peftkit.models.samples import logits
from peftkit.models.tiny import tiny
from peftkit.ports.linear import Delta

LINEAR = {"lora": {"targets": "linear"}}
OFFSET = 3e3
"""Added to all that a row holds, and taken off again by each norm: what is left has lost digits on the way."""
BOUND = model_folder.BOUNDS[torch.float32]
MERGE = Delta.merge


@pytest.fixture(params=["rounding", "none"])
def run(request: pytest.FixtureRequest, make_run: Any, tmp_path: Path) -> Any:
    """Return a run whose model makes much of its rounding, and one that does not."""
    model: Any = tiny("gpt2")
    if request.param == "rounding":
        with torch.no_grad():
            model.transformer.wpe.weight += OFFSET
    with quiet():
        model.save_pretrained(tmp_path / "own")
        byte_tokenizer().save_pretrained(tmp_path / "own")
    made = make_run("gpt2", LINEAR, base=tmp_path / "own")
    made.rounds = request.param == "rounding"
    return made


def test_what_is_rounding_is_merged(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    compare = model_folder.compare
    monkeypatch.setattr(
        model_folder, "compare", lambda one, other, *rest: seen.append(one) or compare(one, other, *rest)
    )
    report = merge(run.folder, tmp_path / "merged")
    assert [x.dtype for x in seen] == [torch.float32, torch.float64][: 1 + run.rounds]
    assert report.get("compared_in") == ("float64" if run.rounds else None)
    assert report["max_difference"] <= report["bound"] == pytest.approx(BOUND * report["scale"])


def by(factor: float) -> Callable[..., Any]:
    """Return a merge that adds so many times the change."""

    def wrong(self: Any, weight: Tensor, bias: Tensor | None) -> Any:
        merged, bias = MERGE(self, weight, bias)
        return weight + factor * (merged - weight), bias

    return wrong


def transposed(self: Any, weight: Tensor, bias: Tensor | None) -> Any:
    merged, bias = MERGE(self, weight, bias)
    merged[:8, :8] = merged[:8, :8].T.clone()
    return merged, bias


def one_left_out(self: Any, weight: Tensor, bias: Tensor | None) -> Any:
    left = self.site.role == "down" and self.site.layer == 0
    return (weight, bias) if left else MERGE(self, weight, bias)


@pytest.mark.parametrize("mistake", [by(2.0), by(1.01), transposed, one_left_out])
def test_a_mistake_is_refused(run: Any, mistake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Delta, "merge", mistake)
    with pytest.raises(PeftkitError, match="the merged model, in fp64: its logits differ"):
        merge(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_smallest_mistake_that_is_refused_is_the_bound(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reached, factor = 0.0, 1e-6
    while reached < BOUND:
        monkeypatch.setattr(Delta, "merge", by(1 + factor))
        try:
            report = merge(run.folder, tmp_path / f"{factor}")
        except PeftkitError:
            break
        reached, factor = report["max_difference"] / report["scale"], 1.5 * factor
    assert BOUND / 2 < reached <= BOUND


def test_what_does_not_compute_in_fp64_is_refused_as_before(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Delta, "merge", by(2.0))
    monkeypatch.setattr(model_folder, "free_memory", lambda device: 0)
    with pytest.raises(PeftkitError, match="the merged model: its logits differ"):
        merge(run.folder, tmp_path / "out")


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next"])
def test_doubled_computes_in_fp64_and_leaves_all_as_it_was(family: str):
    """Sums that lose digits are the same sums then, in experts and in layers that ask for fp32 themselves."""
    model, words = zoo.build(family), zoo.byte_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = logits(model, words)
    with doubled(model):
        exact = logits(model, words)
        assert torch.zeros(1).dtype == torch.ones(1, dtype=torch.float32).dtype == torch.float64
        for layer in cast(Any, model).model.layers:
            layer.mlp.register_forward_hook(lambda module, args, y: y + 1e3 - 1e3)
        lost = logits(model, words)
    assert exact.dtype == torch.float64
    assert plain.dtype == torch.zeros(1).dtype == torch.float32
    scale = float(plain.std())
    assert 1e-7 < float((plain - exact).abs().max()) / scale < 1e-3
    assert 0 < float((lost - exact).abs().max()) / scale < 1e-9
    assert float((logits(model, words) - plain).abs().max()) / scale > 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
