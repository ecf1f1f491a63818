"""Packing a pretraining run as a bundled model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_folders import byte_tokenizer, section

import pack_model as pack
from peftkit import files, tensor_file
from peftkit import recipe as recipes
from peftkit.adaptation import attach, save_adapter
from peftkit.errors import PeftkitError
from peftkit.models.load import load
from peftkit.training.summary import Summary

IDS = torch.arange(3, 40)[None]
INIT = {"architecture": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def pretraining(folder: Path, model: dict[str, object]) -> torch.Tensor:
    """Write a finished run from random weights and return the trained model's logits."""
    recipe = recipes.load({"model": model, "method": "full", "dataset": "e2e"})
    files.write_text(folder / "recipe.yaml", recipe.to_yaml())
    losses = {"first": 5.0, "last": 1.25, "best": 1.2, "validation": None}
    summary = Summary(
        model="made",
        methods=["full"],
        dataset="made",
        trainable_parameters=1,
        total_parameters=1,
        examples=1,
        dropped_examples=0,
        steps=7000,
        epochs=1.0,
        tokens=10**7,
        trained_tokens=10**7,
        tokens_per_second=1.0,
        peak_memory_bytes=1,
        wall_s=1.0,
        losses=losses,
        device="cpu",
        precision="fp32",
        versions={},
    )
    files.write_json(folder / "summary.json", summary.as_dict())
    base = load(recipe.model)
    adaptation = attach(base.model, recipe.methods())
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
        save_adapter(adaptation, folder / "adapter", {"name": base.name, "fingerprint": base.fingerprint})
        return base.model(IDS).logits


def test_the_packed_model_is_the_trained_one_in_bf16_with_a_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "words")
    logits = pretraining(tmp_path / "run", {"init": INIT, "tokenizer": str(tmp_path / "words")})
    assert pack.main([str(tmp_path / "run"), str(tmp_path / "small")]) == 0
    assert "parameters: " in capsys.readouterr().out
    assert {t.dtype for t in tensor_file.read_tensors(tmp_path / "small" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    packed = load(section(tmp_path / "small"))
    with torch.no_grad():
        torch.testing.assert_close(packed.model(IDS).logits, logits, atol=0.05 * float(logits.abs().max()), rtol=0)
    card = (tmp_path / "small" / "README.md").read_text()
    for told in ("llama", "96 tokens", "7,000 steps", "1.250 nats", "hidden_size: 16", "made"):
        assert told in card
    for path in tmp_path.glob("small/*.json"):
        assert str(tmp_path) not in path.read_text()
    assert str(tmp_path) not in card


def test_a_run_from_a_pretrained_model_and_one_too_big_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "words")
    pretraining(tmp_path / "run", {"init": INIT, "tokenizer": str(tmp_path / "words")})
    monkeypatch.setattr(pack, "LIMIT", 1000)
    with pytest.raises(PeftkitError, match="1,000"):
        pack.pack(tmp_path / "run", tmp_path / "small")
    assert not (tmp_path / "small").exists()
    monkeypatch.undo()
    pack.pack(tmp_path / "run", tmp_path / "small")
    pretraining(tmp_path / "second", {"name": str(tmp_path / "small")})
    with pytest.raises(PeftkitError, match=r"model\.init"):
        pack.pack(tmp_path / "second", tmp_path / "other")


def test_the_wrong_number_of_arguments_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert pack.main(["one"]) == 2
    assert "RUN OUTPUT" in capsys.readouterr().err
    assert pack.main(["/nowhere/run", "/nowhere/output"]) == 2
    assert json.dumps("/nowhere")[1:-1] in capsys.readouterr().err
