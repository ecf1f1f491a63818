"""A small recipe with its own model, tokenizer and data: a run of it takes a fraction of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ["red", "blue", "green", "small", "large", "round", "square", "old", "stone", "river", "house", "tree", "bird"]


def write_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer of 259 tokens: padding, beginning, end, and the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_documents(folder: Path, count: int = 40) -> Path:
    """Write `count` documents of unequal length for training, and some for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", count), ("validation", 6)):
        lines = []
        for number in range(size):
            words = [WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(2 + number % 5)]
            lines.append(json.dumps({"text": f"{split} {' '.join(words)}"}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_recipe(folder: Path, method: Any = "full", **train: Any) -> dict[str, Any]:
    """Return a recipe of a two-layer model of width 16 on documents, complete but for its output."""
    return {
        "model": {
            "init": {
                "architecture": "llama",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "attention_dropout": 0.1,
                "attention_bias": True,
            },
            "tokenizer": str(write_tokenizer(folder / "tokenizer")),
        },
        "method": method,
        "dataset": {"name": "text", "path": str(write_documents(folder / "data"))},
        "train": {"learning_rate": 0.01, "batch_examples": 4, "max_length": 64, "device": "cpu", **train},
    }
