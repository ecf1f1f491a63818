"""Folders of other libraries changed at random: each is read or refused, and nothing else comes of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from draw import thorough
from folders import BOTTLENECK, LOW_RANK, PREFIX, SINGLE, Noise, bottleneck, write_delta, write_hub
from mutated_files import HELD, PORTIONS, mutate_one
from safetensors.torch import load_file, save_file
from test_adapterhub_folders import NAMES
from torch import Tensor

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.interchange.reader import reader_of
from peftkit.layout import Layout
from peftkit.models.tiny import tiny

CASES = [*HELD, *(thorough(portion) for portion in PORTIONS)]
"""Single cases that `make test` holds, and portions of all."""


def folders(root: Path) -> list[Path]:
    """Write one folder of each kind that reading knows."""
    noise, hub, delta = Noise(), "model.layers.{}.output_adapters.adapters.task", "model.layers.{}.mlp"
    single = {f"{hub.format(n)}.{NAMES[k]}": v for n in range(2) for k, v in bottleneck(noise).items()}
    sides = {"adapter_down.0": (32, 8), "adapter_up": (8, 32)}
    phm: dict[str, Tensor] = {"model.shared_parameters.task.phm_rule": noise(4, 4, 4)}
    for name, (n, m) in sides.items():
        stem = f"{hub.format(0)}.{name}"
        phm |= {f"{stem}.W_left": noise(4, n // 4, 1), f"{stem}.W_right": noise(4, 1, m // 4), f"{stem}.b": noise(m)}
    q, prefix = "model.layers.0.self_attn.q_proj", "model.prefix_tuning.prefix_tunings.task.self_prefix"
    pair = {f"{q}.loras.task.lora_A": noise(4, 32), f"{q}.loras.task.lora_B": noise(32, 4)}
    mlp = {"wte.weight": noise(5, 32), "control_trans.0.weight": noise(16, 32), "control_trans.0.bias": noise(16)}
    mlp |= {"control_trans.2.weight": noise(64, 16), "control_trans.2.bias": noise(64)}
    names = {"D": "down_proj.weight", "b": "down_proj.bias", "U": "up_proj.weight", "c": "up_proj.bias"}
    behind = {f"{delta.format(0)}.adapter.modulelist.{names[k]}": v for k, v in bottleneck(noise).items()}
    factors = {"down_sampler.W_left": noise(32, 1), "down_sampler.W_right": noise(1, 8), "down_sampler.b": noise(8)}
    factors |= {"up_sampler.W_left": noise(8, 1), "up_sampler.W_right": noise(1, 32), "up_sampler.b": noise(32)}
    prompt, union = (
        {"soft_prompt_layer.soft_embeds": noise(3, 32)},
        {"architecture": "union", "configs": [LOW_RANK, SINGLE]},
    )
    return [
        write_hub(root / "single", SINGLE, single),
        write_hub(root / "factored", {**BOTTLENECK, "mh_adapter": False, "phm_layer": True}, phm),
        write_hub(root / "pairs", LOW_RANK, pair),
        write_hub(root / "prefix", PREFIX, {f"{prefix}.{key}": value for key, value in mlp.items()}),
        write_hub(root / "union", union, {**pair, **single}),
        write_delta(root / "delta", "adapter", behind, bottleneck_dim=8, non_linearity="gelu_new"),
        write_delta(
            root / "low",
            "low_rank_adapter",
            {f"model.layers.0.mlp.low_rank_adapter.{k}": v for k, v in factors.items()},
        ),
        write_delta(
            root / "lora",
            "lora",
            {f"{q}.lora.lora_A": noise(4, 32), f"{q}.lora.lora_B": noise(32, 4)},
            lora_r=4,
            lora_alpha=8,
        ),
        write_delta(root / "prompt", "soft_prompt", prompt),
    ]


def reshape_one(folder: Path, chance: random.Random) -> str:
    """Give one tensor of a folder another shape or name, or leave it out; returns what was done."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    key = chance.choice(sorted(tensors))
    tensor = tensors.pop(key)
    shapes: list[Any] = [tensor.flatten(), tensor[:-1], tensor[..., :-1], tensor[None], tensor[:0], torch.tensor(1.0)]
    change = chance.randrange(len(shapes) + 2)
    if change < len(shapes):
        tensors[key] = shapes[change].contiguous().clone()
    elif change == len(shapes):
        tensors[key.replace("0", "7", 1)] = tensor
    save_file(tensors, path)
    return f"{key}: {change}"


def opened(folder: Path) -> bool:
    """Read a folder and attach what it holds; False where that is refused."""
    try:
        reader = reader_of(folder)
        if reader is None:
            return False
        model = tiny("llama")
        found = reader.read(folder, Layout(model))
        attach(model, found.methods, loading=True).load_state(found.tensors)
    except PeftkitError:
        return False
    return True


def test_every_kind_opens_as_it_is(tmp_path: Path) -> None:
    assert all(opened(folder) for folder in folders(tmp_path))


@pytest.mark.parametrize("portion", CASES, ids=str)
def test_a_changed_folder_is_read_or_refused(portion: Any, tmp_path: Path) -> None:
    for case in [portion] if isinstance(portion, int) else portion:
        chance = random.Random(case)
        folder = chance.choice(folders(tmp_path / str(case)))
        told = (mutate_one if chance.random() < 0.6 else reshape_one)(folder, chance)
        try:
            opened(folder)
        except Exception as error:
            raise AssertionError(f"case {case}: {folder.name}: {told}") from error
