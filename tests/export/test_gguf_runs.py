"""Runs on a GGUF base: merged and exported they open in plain transformers and Hugging Face peft, like any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit import recipe
from peftkit.export import export
from peftkit.export.merged import merge
from peftkit.export.packed import quantize
from peftkit.export.trained import open_run
from peftkit.models.quiet import quiet
from peftkit.models.samples import logits
from peftkit.training import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GGUF file and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    write_gguf(folder / "tiny.gguf", "Q4_1")
    return folder


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PEFTKIT_CACHE", str(place / "cache"))
        train(chosen(base, place), place / "lora")
    return place / "lora"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


def chosen(base: Path, folder: Path, **keys):
    rows = [{"prompt": f"number {index}", "completion": "x" * (index + 1)} for index in range(8)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": str(base), "method": {"lora": {"targets": "linear"}}, "rank": 4}
    data = {"dataset": {"name": "jsonl", "path": str(folder / "train.jsonl")}}
    steps = {"train": {"max_steps": 3, "batch_examples": 4, "learning_rate": 0.05, "device": "cpu"}}
    return recipe.load({**given, **data, **steps, **keys})


def told(folder: Path) -> str:
    """Everything that a folder says in words."""
    texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".json", ".jinja")]
    return "\n".join(texts).lower()


def reopened(folder: Path, dtype: torch.dtype = torch.float32):
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        return model, AutoTokenizer.from_pretrained(folder)


def test_a_merged_run_opens_in_transformers_with_equal_logits(run, tmp_path):
    trained = open_run(run)
    expected = logits(trained.module, trained.tokenizer)
    report = export(run, tmp_path / "merged", "merged")
    assert report["adapter_effect"] > 1e-3
    model, tokenizer = reopened(tmp_path / "merged")
    assert torch.allclose(logits(model, tokenizer), expected, atol=1e-4 * float(expected.abs().max()))
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.chat_template == trained.tokenizer.chat_template
    assert "gguf" not in told(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_an_exported_run_opens_in_hugging_face_peft_with_equal_logits(base, run, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    trained = open_run(run)
    expected = logits(trained.module, trained.tokenizer)
    export(run, tmp_path / "adapter", "hf-peft")
    assert "gguf" not in told(tmp_path / "adapter")
    with quiet():
        plain = AutoModelForCausalLM.from_pretrained(base, gguf_file="tiny.gguf", dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(model, trained.tokenizer), expected, atol=1e-5 * float(expected.abs().max()))


def test_a_run_on_a_packed_base_merges_into_both_kinds_of_weights(base, tmp_path):
    nf4 = {"format": "nf4", "block_size": 32}
    train(chosen(base, tmp_path, quantization=nf4), tmp_path / "run")
    for into in ("original", "dequantized"):
        report = merge(tmp_path / "run", tmp_path / into, into=into)
        assert report["max_difference"] <= report["bound"]
        assert "gguf" not in told(tmp_path / into)


def test_a_file_is_packed_into_a_folder_of_its_own(base, tmp_path):
    report = quantize(str(base / "tiny.gguf"), "nf4", tmp_path / "packed", ["block_size=32"])
    assert report["bytes_before"] == (base / "tiny.gguf").stat().st_size
    assert "gguf" not in told(tmp_path / "packed")
    train(chosen(tmp_path / "packed", tmp_path), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").is_file()
