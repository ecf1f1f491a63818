"""`model.rope_factor`: longer texts than the model was trained on, as the papers' formulas have the angles."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from attempts import attempt
from model_folders import section
from transformers import AutoModelForCausalLM

import zoo
from peftkit.errors import PeftkitError
from peftkit.generation.limits import context_length
from peftkit.models.load import load
from peftkit.recipe import load as read

IDS = torch.arange(3, 43)[None]
FACTOR = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.write(tmp_path_factory.mktemp("llama") / "model", "llama")


def logits(model, **rest):
    with torch.no_grad():
        return model(input_ids=IDS, **rest).logits


def loaded(folder: Path, factor: float = FACTOR, kind: str = "linear"):
    return load(section(folder, rope_factor=factor, rope_type=kind)).model


def frequencies(model):
    return model.model.rotary_emb.inv_freq


def test_linear_is_the_model_at_fractional_positions(folder: Path):
    plain, scaled = load(section(folder)).model, loaded(folder)
    expected = logits(plain, position_ids=torch.arange(IDS.shape[1])[None] / FACTOR)
    assert torch.allclose(logits(scaled), expected, atol=1e-6)
    assert not torch.allclose(logits(scaled), logits(plain), atol=1e-3)
    assert context_length(scaled) == FACTOR * context_length(plain)


def test_ntk_slows_the_slowest_angle_by_the_factor_and_leaves_the_fastest(folder: Path):
    plain, scaled = load(section(folder)).model, loaded(folder, kind="ntk")
    before, after = frequencies(plain), frequencies(scaled)
    assert after[0] == before[0] == 1
    assert math.isclose(after[-1], before[-1] / FACTOR, rel_tol=1e-5)
    assert context_length(scaled) == FACTOR * context_length(plain)


def test_yarn_divides_slow_angles_leaves_fast_ones_and_ramps_between(folder: Path):
    """By the paper's formula with 32 and 1 rotations as the borders; attention is sharpened by its temperature."""
    plain, scaled = load(section(folder)).model, loaded(folder, kind="yarn")
    before, longest = frequencies(plain).tolist(), context_length(plain)
    size, base = 2 * len(before), plain.config.rope_parameters["rope_theta"]
    low, high = (size * math.log(longest / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), size - 1)
    kept = [1 - min(max((i - low) / max(high - low, 0.001), 0), 1) for i in range(len(before))]
    expected = [f * share + f / FACTOR * (1 - share) for f, share in zip(before, kept, strict=True)]
    assert torch.allclose(frequencies(scaled), torch.tensor(expected))
    assert math.isclose(scaled.model.rotary_emb.attention_scaling, 0.1 * math.log(FACTOR) + 1)


@pytest.mark.parametrize("family", ["gemma3_text", "phi", "deepseek_v3", "qwen2_5_vl"])
@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_other_shapes_of_rotary_parameters(family: str, kind: str, tmp_path: Path):
    """Layer by layer, of part of a head, of latent attention, and in three dimensions."""
    place = zoo.write(tmp_path / "model", family)
    plain, scaled = load(section(place)).model, loaded(place, kind=kind)
    assert logits(scaled).isfinite().all()
    assert not torch.allclose(logits(scaled), logits(plain), atol=1e-4)
    if family == "gemma3_text":
        before, after = (model.config.rope_parameters["sliding_attention"] for model in (plain, scaled))
        assert before == after


def test_a_run_keeps_it_and_a_merged_model_has_it_in_plain_transformers(folder: Path, tmp_path: Path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    recipe = {
        "model": {"name": str(folder), "rope_factor": FACTOR},
        "method": "lora",
        "dataset": "bundled/e2e",
        "train": {"max_steps": 2, "batch_examples": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    assert attempt(["train", path, "--output", run], "train").code == 0
    assert attempt(["merge", run, "--output", merged], "merge").code == 0
    plain = AutoModelForCausalLM.from_pretrained(merged)
    ours = load(section(merged)).model
    assert plain.config.rope_parameters["factor"] == FACTOR
    assert torch.allclose(logits(plain), logits(ours), atol=1e-6)
    ended = attempt(["export", run, "--format", "hf-peft", "--output", tmp_path / "peft"], "export")
    assert ended.code == 2
    assert "model.rope_factor" in ended.err


@pytest.mark.parametrize("family", ["gpt2", "bloom", "mamba"])
def test_models_without_rotary_positions_are_refused(family: str, tmp_path: Path):
    place = zoo.write(tmp_path / "model", family)
    with pytest.raises(PeftkitError, match="no rotary positions"):
        loaded(place)


def test_positions_that_are_scaled_already_are_refused(folder: Path, tmp_path: Path):
    model = loaded(folder, factor=2.0)
    model.save_pretrained(tmp_path / "scaled")
    load(section(folder)).tokenizer.save_pretrained(tmp_path / "scaled")
    with pytest.raises(PeftkitError, match=r"scaled already \(linear, factor 2.0\)"):
        loaded(tmp_path / "scaled")


@pytest.mark.parametrize(
    ("given", "words"),
    [({"rope_factor": 0.5}, "a number from 1"), ({"rope_factor": 2.0, "rope_type": "yarm"}, "did you mean 'yarn'")],
)
def test_bad_values_are_told(given, words: str, folder: Path):
    with pytest.raises(PeftkitError, match=words):
        read({"model": {"name": str(folder), **given}, "method": "lora", "dataset": "bundled/e2e"})
