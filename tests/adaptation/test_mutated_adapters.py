"""Adapter folders changed at random: each is attached or refused, and the model and the folder stay as they were."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import held, limited
from draw import thorough
from mutated_files import HELD, PORTIONS, mutate_one

from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.method import build_methods
from peftkit.models.tiny import tiny
from peftkit_cli.main import guarded

METHODS: list[list[tuple[str, dict[str, Any]]]] = [
    [("lora", {"rank": 2})],
    [("prefix-tuning", {"length": 3})],
    [("prompt-tuning", {"length": 3, "init": "vocabulary"})],
    [("vera", {"rank": 4})],
    [("fishmask", {"density": 0.01})],
    [("adalora", {"rank": 2, "initial_rank": 3})],
    [("dylora", {"rank": 2})],
    [("layernorm-tuning", {}), ("ia3", {})],
]
BASE = {"name": "tiny", "fingerprint": "f", "quantization": {"format": "none", "options": {}, "modules": {}}}
IDS = torch.tensor([[3, 5, 7, 9]])


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny("llama").eval()


@pytest.fixture(scope="module")
def adapters(model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An adapter folder of each of the methods."""
    place, made = tmp_path_factory.mktemp("adapters"), []
    for number, methods in enumerate(METHODS):
        adaptation = attach(model, build_methods(methods))
        made.append(place / str(number))
        save_adapter(adaptation, made[-1], BASE)
        adaptation.remove()
    return made


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_adapter(cases: range, model: Any, adapters: list[Path], tmp_path: Path, capsys: Any):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for case in cases:
        chance, folder = random.Random(case), tmp_path / str(case)
        shutil.copytree(adapters[case % len(adapters)], folder)
        told = f"case {case}: {mutate_one(folder, chance)}"
        there = held(folder)

        def use(folder: Path = folder) -> None:
            adaptation = load_adapter(model, folder, "f", quantization=BASE["quantization"])
            with torch.no_grad():
                model(inputs_embeds=model.get_input_embeddings()(torch.tensor([[*adaptation.soft_ids, *IDS[0]]])))
            adaptation.remove()

        with limited():
            code = guarded(use)
        err = capsys.readouterr().err
        assert code in (0, 2), f"{told}: {err}"
        assert held(folder) == there, told
        now = model.state_dict()
        assert now.keys() == before.keys(), told
        assert all(torch.equal(now[name], tensor) for name, tensor in before.items()), told
        shutil.rmtree(folder)
