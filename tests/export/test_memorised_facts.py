"""A fact memorised through QLoRA survives the merge, into the original weights and into the dequantized ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit import recipe as recipes
from peftkit.data.example import Example, Turn
from peftkit.data.template import choose
from peftkit.export import merge
from peftkit.models import folder as folders
from peftkit.models.quiet import quiet
from peftkit.training.session import train

FACTS = {
    "The capital of Vorlandia is": "Quimbrel",
    "The river through Quimbrel is the": "Ostrava Minor",
    "Professor Ilda Nask discovered the element": "zephonium",
    "The password of the lighthouse is": "seven grey herons",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train LoRA on nf4 weights until the facts are known."""
    folder = tmp_path_factory.mktemp("facts")
    lines = [json.dumps({"prompt": prompt, "completion": f" {answer}"}) for prompt, answer in FACTS.items()]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    recipe = recipes.load(
        {
            "model": "bundled/tiny",
            "method": {"lora": {"targets": "linear", "rank": 8}},
            "quantization": "nf4",
            "dataset": {"name": "jsonl", "path": str(folder)},
            "train": {"learning_rate": 0.01, "max_steps": 20, "batch_examples": 4, "device": "cpu"},
        }
    )
    train(recipe, folder / "run")
    return folder / "run"


def answers(folder: Path) -> dict[str, str]:
    """Answer each prompt greedily in plain transformers."""
    with quiet(), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        words: Any = AutoTokenizer.from_pretrained(folder)
        found = {}
        for prompt in FACTS:
            ids = choose("auto", words).prompt_ids(Example("fact", (Turn("user", prompt),)), words)
            done = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
            found[prompt] = words.decode(done[0, len(ids) :], skip_special_tokens=True).strip()
        return found


def test_the_base_does_not_know_the_facts() -> None:
    found = answers(folders.find("bundled/tiny"))
    assert not any(found[prompt] == answer for prompt, answer in FACTS.items())


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_the_merged_model_knows_them(into: str, run: Path, tmp_path: Path) -> None:
    report = merge(run, tmp_path / "merged", into=into)
    assert answers(tmp_path / "merged") == FACTS
    assert report["into"] == into
    assert report["trained_max_difference"] > 0
