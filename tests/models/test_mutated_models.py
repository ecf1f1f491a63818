"""Model folders changed at random: each is loaded and computes, or is refused; nothing in it is touched."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import held, limited
from draw import thorough
from model_folders import section, write_model
from mutated_files import HELD, PORTIONS, mutate_one

from peftkit.export.packed import quantize
from peftkit.generation import Settings, generate
from peftkit.models.load import load
from peftkit_cli.main import guarded


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of a model in one file, in shards, of another family, and of packed weights."""
    place = tmp_path_factory.mktemp("models")
    made = [
        write_model(place / "whole"),
        write_model(place / "shards", max_shard_size="20KB"),
        write_model(place / "gpt2", "gpt2", torch.float16),
    ]
    quantize(str(made[0]), "nf4", place / "packed")
    return [*made, place / "packed"]


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_model_folder(cases: range, models: list[Path], tmp_path: Path, capsys: Any):
    for case in cases:
        chance, folder = random.Random(case), tmp_path / str(case)
        shutil.copytree(models[case % len(models)], folder)
        told = f"case {case}: {mutate_one(folder, chance)}"
        there = held(folder)

        def use(folder: Path = folder) -> None:
            loaded = load(section(folder))
            generate(loaded.model, loaded.tokenizer, [loaded.tokenizer("abc").input_ids], Settings(max_new_tokens=3))

        with limited():
            code = guarded(use)
        assert code in (0, 2), f"{told}: {capsys.readouterr().err}"
        assert held(folder) == there, told
        shutil.rmtree(folder)
