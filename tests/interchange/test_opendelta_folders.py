"""Folders of OpenDelta 0.3.2 give the logits that its formulas give, or are refused with the reason.

The keys, shapes and configurations are those that this version wrote for Llama and GPT-2 under transformers 4.36, whose
logits these formulas equal.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folders import BLOCKS, ENDS, LAYERS, Noise, added, behind, bottleneck, reading, write_delta
from torch import Tensor

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.interchange import READERS
from peftkit.layout import Layout
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 40)[None]
NAMES = {"D": "down_proj.weight", "b": "down_proj.bias", "U": "up_proj.weight", "c": "up_proj.bias"}
NEW = partial(F.gelu, approximate="tanh")
WHOLES = {"llama": ("self_attn", "mlp"), "gpt2": ("attn", "mlp")}
GELU = {"bottleneck_dim": 8, "non_linearity": "gelu_new"}


def read(folder: Path, architecture: str) -> tuple[list[str], Tensor]:
    """Return the methods that a folder is read as, and the logits with it, rows of a soft prompt in front."""
    model = tiny(architecture)
    found = READERS["opendelta"].read(folder, Layout(model))
    adaptation = attach(model, found.methods)
    adaptation.load_state(found.tensors)
    ids = torch.cat([torch.tensor(adaptation.soft_ids, dtype=torch.long)[None], IDS], 1)
    with torch.no_grad():
        return [method.name for method in found.methods], model(ids).logits


def check(folder: Path, architecture: str, expected: Tensor, *names: str) -> None:
    """Hold a folder to logits that are far from the base's."""
    read_as, ours = read(folder, architecture)
    assert read_as == list(names)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (expected[:, -IDS.shape[1] :] - logits(tiny(architecture))).abs().max() > 0.05


def logits(model: Any, **given: Any) -> Tensor:
    with torch.no_grad():
        return model(**(given or {"input_ids": IDS})).logits


def test_pairs_are_lora(tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("llama"), {}
    for layer in range(LAYERS):
        for name, outputs in (("self_attn.q_proj", 32), ("mlp.up_proj", 64)):
            path, A, B = f"model.layers.{layer}.{name}", noise(4, 32), noise(outputs, 4)
            tensors |= {f"{path}.lora.lora_A": A, f"{path}.lora.lora_B": B}
            reading(model.get_submodule(path), lambda x, y, A=A, B=B: y + 9 / 4 * x @ A.T @ B.T)
    folder = write_delta(tmp_path / "a", "lora", tensors, lora_r=4, lora_alpha=9, lora_dropout=0.0)
    check(folder, "llama", logits(model), "lora")


@pytest.mark.parametrize("architecture", ENDS)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["adapter", "low_rank_adapter"])
def test_adapters_behind_maps_and_parts_are_serial_adapters(
    architecture: str, whole: bool, kind: str, tmp_path: Path
) -> None:
    noise, model, tensors = Noise(), tiny(architecture), {}
    for layer in range(LAYERS):
        for name in (WHOLES if whole else ENDS)[architecture]:
            path, own = f"{BLOCKS[architecture]}.{layer}.{name}", bottleneck(noise)
            if kind == "adapter":
                tensors |= {f"{path}.adapter.modulelist.{NAMES[key]}": value for key, value in own.items()}
            else:
                stem = f"{path}.low_rank_adapter"
                for side, key, bias, n, m in (("down", "D", "b", 32, 8), ("up", "U", "c", 8, 32)):
                    left, right = noise(n, 1) * 3, noise(1, m) * 3
                    names = {"W_left": left, "W_right": right, "b": own[bias]}
                    tensors |= {f"{stem}.{side}_sampler.{one}": value for one, value in names.items()}
                    own[key] = (left @ right).T
            behind(model.get_submodule(path), lambda h, own=own: h + added(h, own, NEW))
    options = GELU if kind == "adapter" else {"reduction_factor": 4, "non_linearity": "gelu_new", "low_rank_rank": 1}
    check(write_delta(tmp_path / "a", kind, tensors, **options), architecture, logits(model), "serial-adapter")


def test_parallel_adapters_run_beside_both_parts(tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("llama"), {}
    for layer in range(LAYERS):
        for part, path in (("self_attn", "self_attn"), ("mlp", "mlp.gate_proj")):
            own, block = bottleneck(noise), f"model.layers.{layer}"
            stem = f"{block}.{path}.parallel_adapter.modulelist"
            tensors |= {f"{stem}.{NAMES[key]}": value for key, value in own.items()}
            reads: list[Tensor] = []
            model.get_submodule(f"{block}.{part}").register_forward_pre_hook(
                lambda _, args, kwargs, reads=reads: reads.append(args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
            behind(
                model.get_submodule(f"{block}.{part}"), lambda y, own=own, reads=reads: y + added(reads.pop(), own, NEW)
            )
    beside = {**GELU, "scaled": None, "modified_modules": ["attn@", "attn@", "ff@.w1@", "ff@.w2@"]}
    folder = write_delta(tmp_path / "a", "parallel_adapter", tensors, **beside)
    check(folder, "llama", logits(model), "parallel-adapter", "parallel-adapter")
    folder = write_delta(tmp_path / "b", "parallel_adapter", tensors, **{**beside, "modified_modules": ["attn", "mlp"]})
    with pytest.raises(PeftkitError, match="modified_modules is"):
        read(folder, "llama")


@pytest.mark.parametrize("mlp", [False, True])
def test_prefixes_are_keys_and_values_of_each_layer(mlp: bool, tmp_path: Path) -> None:
    from transformers import DynamicCache

    noise, tensors, stem = Noise(), {}, "transformer.h.0.attn.reparams"
    if mlp:
        own = {
            "wte.weight": noise(5, 16) * 9,
            "control_trans.0.weight": noise(24, 16),
            "control_trans.0.bias": noise(24),
        }
        own |= {"control_trans.2.weight": noise(128, 24) * 9, "control_trans.2.bias": noise(128)}
        inner = torch.tanh(own["wte.weight"] @ own["control_trans.0.weight"].T + own["control_trans.0.bias"])
        parts = list((inner @ own["control_trans.2.weight"].T + own["control_trans.2.bias"]).chunk(4, 1))
        tensors = {f"{stem}.{key}": value for key, value in own.items()}
    else:
        parts = [noise(5, 32) * 9 for _ in range(4)]
        names = [f"transformer.h.{layer}.attn.prefix.past_{kind}" for layer in range(2) for kind in ("key", "value")]
        tensors = dict(zip(names, parts, strict=True))
    folder = write_delta(tmp_path / "a", "prefix", tensors, prefix_token_num=5, reparameterize=mlp)
    cache = DynamicCache()
    heads = [part.view(5, 4, 8).transpose(0, 1)[None] for part in parts]
    for layer in range(2):
        cache.update(heads[2 * layer], heads[2 * layer + 1], layer)
    places = torch.arange(IDS.shape[1])[None]
    expected = logits(tiny("gpt2"), input_ids=IDS, past_key_values=cache, position_ids=places)
    check(folder, "gpt2", expected, "p-tuning-v2")


def test_soft_prompts_stand_in_front(tmp_path: Path) -> None:
    model, rows = tiny("llama"), Noise()(5, 32) * 5
    folder = write_delta(tmp_path / "a", "soft_prompt", {"soft_prompt_layer.soft_embeds": rows}, soft_token_num=5)
    embedded = torch.cat([rows[None], model.get_input_embeddings()(IDS)], 1)
    check(folder, "llama", logits(model, inputs_embeds=embedded), "prompt-tuning")


@pytest.mark.parametrize("some", [False, True])
def test_biases_are_bitfit(some: bool, tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("gpt2"), {}
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and ("attn" in name or not some):
            parameter.data += noise(*parameter.shape)
            tensors[name] = parameter.detach().clone()
    check(write_delta(tmp_path / "a", "bitfit", tensors), "gpt2", logits(model), "bitfit")


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("compacter", {}, "delta_type is 'compacter'; read are adapter, bitfit, lora"),
        ("adapter", {"non_linearity": "leakyrelu"}, "non_linearity is 'leakyrelu'"),
        ("adapter", {"novelty": 2}, "novelty is set"),
        ("lora", {"lora_r": 4, "lora_alpha": 9}, "the tensors of the adapter lack any of lora"),
    ],
)
def test_what_is_not_read_is_refused_by_name(kind: str, options: Any, told: str, tmp_path: Path) -> None:
    tensors = {f"model.layers.0.mlp.adapter.modulelist.{NAMES[k]}": v for k, v in bottleneck(Noise()).items()}
    with pytest.raises(PeftkitError, match=told):
        read(write_delta(tmp_path / "a", kind, tensors, **options), "llama")


def test_another_base_and_stray_tensors_are_refused(tmp_path: Path) -> None:
    tensors = {f"model.layers.0.mlp.adapter.modulelist.{NAMES[k]}": v for k, v in bottleneck(Noise()).items()}
    folder = write_delta(tmp_path / "a", "adapter", tensors, **GELU)
    with pytest.raises(PeftkitError, match=r"no module 'model\.layers\.0\.mlp' in this gpt2 model"):
        read(folder, "gpt2")
    folder = write_delta(tmp_path / "b", "adapter", {**tensors, "lm_head.weight": torch.zeros(96, 32)}, **GELU)
    with pytest.raises(PeftkitError, match=r"'lm_head\.weight' is no part of a 'adapter'"):
        read(folder, "llama")
