"""What folders of Hugging Face peft have beside an adapter: whole modules, biases, rows of tokens, pairs of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hf_peft_starts import check, hub, logits, write

from peftkit.errors import PeftkitError

Q = {"r": 4, "target_modules": ["q_proj"]}
C = {"r": 4, "target_modules": ["c_attn"]}
LORA: dict[str, tuple[str, dict[str, Any]]] = {
    "layers": ("llama", {"r": 4, "target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
    "layers of a list": ("llama", {**Q, "layers_to_transform": [0], "layers_pattern": "layers"}),
    "regular expression": ("llama", {"r": 4, "target_modules": r".*layers\.0\..*(q|v)_proj"}),
    "exclude": ("llama", {"r": 4, "target_modules": "all-linear", "exclude_modules": ["up_proj"]}),
    "patterns": (
        "llama",
        {"r": 4, "target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r".*\.0\..*v_proj": 3}},
    ),
    "head": ("llama", {**Q, "modules_to_save": ["lm_head"]}),
    "embedding": ("llama", {**Q, "modules_to_save": ["embed_tokens"]}),
    "both": ("llama", {**Q, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "norms": ("llama", {**Q, "modules_to_save": ["input_layernorm", "norm"]}),
    "linear with a bias": ("gpt2", {**C, "modules_to_save": ["mlp.c_fc"]}),
    "biases": ("gpt2", {**C, "bias": "all"}),
    "adapted biases": ("gpt2", {**C, "bias": "lora_only"}),
    "bias of the pair": ("llama", {"r": 4, "target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "bias of a scaled pair": ("gpt2", {**C, "lora_bias": True, "use_rslora": True, "lora_alpha": 3}),
    "tokens": ("llama", {**Q, "trainable_token_indices": [5, 9, 11]}),
    "tokens by name": ("llama", {**Q, "trainable_token_indices": {"embed_tokens": [5, 9]}}),
    "tokens of a tied table": ("gpt2", {**C, "trainable_token_indices": {"wte": [5, 9]}}),
    "pairs of the embedding": ("llama", {"r": 4, "target_modules": ["q_proj", "embed_tokens"], "lora_alpha": 6}),
    "pairs of the head": ("llama", {"r": 4, "target_modules": ["q_proj", "lm_head"]}),
    "magnitudes and a norm": ("llama", {**Q, "use_dora": True, "modules_to_save": ["norm"]}),
}


@pytest.mark.parametrize("name", LORA)
def test_logits_are_the_library_s(name: str, tmp_path: Path) -> None:
    architecture, options = LORA[name]
    check(tmp_path, architecture, write(tmp_path, architecture, hub.LoraConfig(**options)))


OTHERS: dict[str, Any] = {
    "ia3": lambda: hub.IA3Config(task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    "loha": lambda: hub.LoHaConfig(target_modules=["q_proj"], modules_to_save=["norm"]),
    "oft": lambda: hub.OFTConfig(target_modules=["q_proj"], oft_block_size=8, modules_to_save=["norm"]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whole_modules_beside_other_types(name: str, tmp_path: Path) -> None:
    check(tmp_path, "llama", write(tmp_path, "llama", OTHERS[name]()))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({**C, "modules_to_save": ["lm_head"]}, "lm_head.weight was trained apart from the weight that it shares"),
        ({**C, "modules_to_save": ["wte"]}, "wte.weight was trained apart from the weight that it shares"),
        (
            {"r": 4, "target_modules": ["c_attn", "wte"]},
            "changes the embedding and not the head that shares its weight",
        ),
    ],
    ids=["head", "embedding", "pairs"],
)
def test_a_shared_weight_that_was_trained_apart_is_refused(options: Any, told: str, tmp_path: Path) -> None:
    write(tmp_path, "gpt2", hub.LoraConfig(**options))
    with pytest.raises(PeftkitError, match=told):
        logits(tmp_path, "gpt2")


def test_a_larger_vocabulary_and_other_tokens_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama", hub.LoraConfig(**Q, modules_to_save=["lm_head"]))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(98, 32)}, path)
    with pytest.raises(PeftkitError, match=r"lm_head\.weight has the shape \[98, 32\], and it is \[96, 32\] in this"):
        logits(tmp_path, "llama")
    write(tmp_path, "llama", hub.LoraConfig(**Q, trainable_token_indices=[5, 9]))
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "trainable_token_indices": [5]}))
    with pytest.raises(PeftkitError, match="trainable_token_indices names 1 rows"):
        logits(tmp_path, "llama")


def test_tables_that_are_the_base_s_own_are_left_alone(tmp_path: Path) -> None:
    """The library writes the embeddings beside pairs of the head, changed or not."""
    from peftkit.export.hf_peft import read
    from peftkit.layout import Layout
    from peftkit.models.tiny import tiny

    write(tmp_path, "llama", hub.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "adapter_model.safetensors")
    methods, _ = read(tmp_path, Layout(tiny("llama")))
    assert [method.name for method in methods] == ["lora"]
