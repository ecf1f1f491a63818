"""The main job through the command line: train, score, merge, export, and open the results with other programs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit import resources
from peftkit.adaptation import load_adapter
from peftkit.models.load import load as load_model
from peftkit.models.samples import logits
from peftkit.recipe import load as load_recipe
from peftkit_cli.main import main

BUNDLED = resources.PACKAGE / "data" / "bundled" / "e2e"
STEPS = 6


@pytest.fixture(params=["bundled", "real"])
def folder(request, tmp_path) -> Path:
    """A slice of E2E files in a folder of their own: 40 inputs at most, in the official form."""
    source = BUNDLED if request.param == "bundled" else request.getfixturevalue("shared_data") / "e2e"
    target = tmp_path / "e2e"
    target.mkdir()
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        lines = (source / name).read_bytes().splitlines(keepends=True)[:41]
        (target / name).write_bytes(b"".join(lines))
    return target


def test_from_the_official_files_to_models_that_other_programs_open(folder, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    run = tmp_path / "run"
    given = ["e2e/lora", f"dataset.path={folder}", "model=bundled/tiny", f"train.max_steps={STEPS}"]
    assert main(["train", *given, "train.epochs=9", "train.learning_rate=1e-3", "--output", str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--limit", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"BLEU-4", "NIST", "ROUGE-L", "CIDEr"} <= set(report["scores"])
    assert (run / "eval" / "e2e-test.json").is_file()
    assert len((run / "eval" / "e2e-test.predictions.jsonl").read_text().splitlines()) == 3
    assert len((run / "log.jsonl").read_text().splitlines()) == STEPS

    loaded = load_model(load_recipe(run / "recipe.yaml").model)
    load_adapter(loaded.model, run / "adapter", loaded.fingerprint)
    expected = logits(loaded.model, loaded.tokenizer)

    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "merged")
    # The bundled model is kept in bfloat16, and so is what is merged into it: three digits of each weight.
    assert (logits(merged, words) - expected).abs().max() <= 0.02 * expected.abs().max()

    assert main(["export", str(run), "--format", "hf-peft", "--output", str(tmp_path / "hf")]) == 0
    base = AutoModelForCausalLM.from_pretrained(loaded.source, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "hf")).eval()
    assert (logits(theirs, words) - expected).abs().max() <= 1e-4


def test_a_base_in_fp32_merges_to_equal_logits(tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(load_model(load_recipe("quickstart").model).source or "", base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.save_pretrained(base)
    run = tmp_path / "run"
    given = ["quickstart", f"model={base}", f"train.max_steps={STEPS}", "train.learning_rate=1e-3"]
    assert main(["train", *given, "--output", str(run)]) == 0
    assert main(["merge", str(run), "--output", str(tmp_path / "merged")]) == 0
    loaded = load_model(load_recipe(run / "recipe.yaml").model)
    load_adapter(loaded.model, run / "adapter", loaded.fingerprint)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    difference = logits(merged, loaded.tokenizer) - logits(loaded.model, loaded.tokenizer)
    assert difference.abs().max() <= 1e-4


def test_the_five_lines_run_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        "model: bundled/tiny\nmethod: lora\nrank: 8\nquantization: none\ndataset: e2e\n", encoding="utf-8"
    )
    assert main(["train", "recipe.yaml", "train.max_steps=2"]) == 0
    summary = json.loads(Path("runs/recipe/summary.json").read_text())
    assert summary["dataset"] == "bundled/e2e"
    assert summary["trainable_parameters"] == 4 * 8 * (2 * 192 + 192 + 64)
    assert "bundled/e2e" in capsys.readouterr().err
