"""`bitdelta`: signs and a scale for each linear map, the rest in full, and the reopened model is the one reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import section
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from peftkit.errors import PeftkitError
from peftkit.export import bitdelta, distill, export
from peftkit.layout import GROUPS, Layout
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.models.samples import logits
from peftkit.models.tiny import tiny
from peftkit.quantization.bits import unpack
from peftkit.quantization.weight import dense

IDS = torch.arange(3, 40)[None]
LINEAR = {"lora": {"targets": "linear"}}
HEAD = {"lora": {"targets": ["q", "v", "head"], "bias": "all"}}


@pytest.fixture
def made(make_run: Any, tmp_path: Path) -> Any:
    """Return a function that writes a run on a few prompts of its own, as `make_run` does."""
    lines = [json.dumps({"prompt": f"{word} is", "completion": " here"}) for word in ("red", "blue", "green", "old")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    data = {"name": "jsonl", "path": str(tmp_path / "data")}
    return lambda *choices, **keys: make_run(*choices, **{"dataset": data, **keys})


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the scales for a few steps."""
    monkeypatch.setattr(distill, "STEPS", 10)


def reopened(folder: Path, base: Path) -> Any:
    """Open the base in plain transformers and add the difference."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    bitdelta.apply(model, folder)
    return model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", [LINEAR, HEAD, "full", "ssf"], ids=["linear", "head", "full", "ssf"])
def test_the_reopened_model_has_the_reported_logits(
    architecture: str, method: Any, made: Any, few: None, tmp_path: Path
) -> None:
    run = made(architecture, method)
    report = export(run.folder, tmp_path / "delta", "bitdelta")
    model = reopened(tmp_path / "delta", tmp_path / "base")
    wanted, found = (logits(one, run.base.tokenizer) for one in (run.base.model, model))
    assert float((found - wanted).abs().max()) == pytest.approx(report["max_difference"], rel=1e-3)
    untouched = (logits(tiny(architecture), run.base.tokenizer) - wanted).abs().mean()
    assert (found - wanted).abs().mean() < untouched
    assert {path.name for path in (tmp_path / "delta").iterdir()} == {bitdelta.TENSORS, bitdelta.DESCRIPTION}


def test_before_training_the_scale_is_the_mean_change_and_zero_counts_as_plus(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "STEPS", 1)
    monkeypatch.setattr(distill, "RATE", 0.0)
    run = made("llama", {"lora": {"targets": ["q"]}})
    adapters = run.base.model.__dict__["_peftkit"].adaptations["default"].parts[0].adapters
    export(run.folder, tmp_path / "delta", "bitdelta")
    held = load_file(tmp_path / "delta" / bitdelta.TENSORS)
    paths = {key.removesuffix(".bits") for key in held if key.endswith(".bits")}
    assert paths == {adapter.site.path for adapter in adapters.values()}
    for adapter in adapters.values():
        path = adapter.site.path
        change = adapter.delta(None).detach()
        assert float(held[f"{path}.scale"]) == pytest.approx(float(change.abs().mean()), rel=1e-4)
        signs = unpack(held[f"{path}.bits"], 1, change.numel()).view(change.shape).bool()
        clear = change.abs() > 1e-6
        assert torch.equal(signs[clear], (change >= 0)[clear])
    base = tiny("llama")
    found = bitdelta._signs(base, tiny("llama"))
    assert found == {}
    weight = dense(base.get_submodule("model.layers.0.self_attn.q_proj"))
    with torch.no_grad():
        weight[0, 0] -= 1.0
    (one,) = bitdelta._signs(base, tiny("llama")).values()
    assert one.values[0, 0] == -1
    assert int((one.values == 1).sum()) == weight.numel() - 1


def test_the_linear_maps_take_a_sixteenth_of_bfloat16(made: Any, few: None, tmp_path: Path) -> None:
    report = export(made("llama", LINEAR).folder, tmp_path / "delta", "bitdelta")
    held = load_file(tmp_path / "delta" / bitdelta.TENSORS)
    weights = [site.inputs * site.outputs for site in Layout(tiny("llama")).linears if site.role in GROUPS["linear"]]
    own = sum(tensor.nbytes for tensor in held.values())
    assert own == report["matrix_bytes"] == sum(weights) // 8 + 4 * len(weights)
    assert report["matrix_bytes_in_bfloat16"] == 2 * sum(weights)
    assert 1 / 16 <= own / report["matrix_bytes_in_bfloat16"] < 1 / 15.5


def test_training_the_scales_brings_the_logits_nearer(made: Any, tmp_path: Path) -> None:
    report = export(made("llama", LINEAR).folder, tmp_path / "delta", "bitdelta")
    assert report["steps"] == distill.STEPS
    assert report["loss_after"] < 0.98 * report["loss_before"]


def test_scales_that_did_not_get_better_stay_as_they_were(
    made: Any, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "RATE", 10.0)
    report = export(made("llama", LINEAR).folder, tmp_path / "delta", "bitdelta")
    assert report["loss_after"] == report["loss_before"]
    assert report["max_difference"] == pytest.approx(report["max_difference_before"], rel=1e-3)


def test_without_the_data_the_scales_are_the_mean_change_and_that_is_told(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = made("llama", LINEAR)
    (tmp_path / "data" / "train.jsonl").unlink()
    with caplog.at_level("WARNING", "peftkit"):
        report = export(run.folder, tmp_path / "delta", "bitdelta")
    assert "the scales are left at the mean change" in caplog.text
    assert report["steps"] == 0
    assert "loss_after" not in report


def test_a_run_on_packed_weights_is_a_difference_to_the_original_ones(made: Any, few: None, tmp_path: Path) -> None:
    run = made("llama", {"lora": {"targets": "linear", "init": "loftq"}}, quantization="nf4")
    export(run.folder, tmp_path / "delta", "bitdelta")
    reopened(tmp_path / "delta", tmp_path / "base")


def test_it_is_added_to_a_packed_base_as_well(made: Any, few: None, tmp_path: Path) -> None:
    from peftkit import recipe as recipes

    run = made("llama", LINEAR, quantization="int8")
    export(run.folder, tmp_path / "delta", "bitdelta")
    chosen = recipes.load(run.folder / "recipe.yaml").quantization
    base, packed = (load(section(tmp_path / "base"), quantization=chosen) for _ in range(2))
    bitdelta.apply(base.model, tmp_path / "delta", base.fingerprint)
    plain, original = reopened(tmp_path / "delta", tmp_path / "base"), tiny("llama")
    for site in Layout(original).resolve("linear"):
        changes = [
            dense(one.get_submodule(site.path)) - dense(other.get_submodule(site.path))
            for one, other in ((base.model, packed.model), (plain, original))
        ]
        torch.testing.assert_close(*changes, atol=1e-6, rtol=0)
        assert changes[0].abs().min() > 1e-3


def other_version(folder: Path) -> None:
    path = folder / bitdelta.DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))


def lost_scale(folder: Path) -> None:
    tensors = load_file(folder / bitdelta.TENSORS)
    del tensors["model.layers.0.self_attn.q_proj.scale"]
    save_file(tensors, folder / bitdelta.TENSORS)


def other_name(folder: Path) -> None:
    tensors = load_file(folder / bitdelta.TENSORS) | {"model.norm.forward": torch.ones(32)}
    save_file(tensors, folder / bitdelta.TENSORS)


FAULTS = {
    "no description": (lambda folder: (folder / bitdelta.DESCRIPTION).unlink(), "holds no one-bit difference"),
    "version": (other_version, "has the format 9"),
    "scale": (lost_scale, "q_proj are missing"),
    "name": (other_name, "model.norm.forward"),
    "truncated": (
        lambda folder: (folder / bitdelta.TENSORS).write_bytes((folder / bitdelta.TENSORS).read_bytes()[:-9]),
        "truncated or damaged",
    ),
    "not an object": (lambda folder: (folder / bitdelta.DESCRIPTION).write_text("[]"), "does not describe"),
}


def test_a_faulty_folder_is_refused_and_the_model_as_before(made: Any, few: None, tmp_path: Path) -> None:
    export(made("llama", LINEAR).folder, tmp_path / "delta", "bitdelta")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "delta").iterdir()}
    for damage, told in FAULTS.values():
        for name, content in kept.items():
            (tmp_path / "delta" / name).write_bytes(content)
        damage(tmp_path / "delta")
        model = tiny("llama")
        with pytest.raises(PeftkitError, match=told):
            bitdelta.apply(model, tmp_path / "delta")
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, tiny("llama")(IDS).logits)
    for name, content in kept.items():
        (tmp_path / "delta" / name).write_bytes(content)
    with pytest.raises(PeftkitError, match="another base"):
        bitdelta.apply(tiny("gpt2"), tmp_path / "delta")
    with pytest.raises(PeftkitError, match="another base model"):
        bitdelta.apply(tiny("llama"), tmp_path / "delta", "0" * 64)
