"""Tiny models on disk for tests, each with a byte-level tokenizer that fits it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())[:93]


def byte_tokenizer(**special: str) -> Any:
    """Return a tokenizer of 96 tokens: padding, begin, end and 93 bytes."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: index + 3 for index, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = {"eos_token": "</s>", "bos_token": "<s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{key: word for key, word in named.items() if word})


def write_model(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    """Write a tiny model and its tokenizer to `folder`; `saving` goes to `save_pretrained`."""
    with quiet():
        tiny(architecture).to(dtype).save_pretrained(folder, **saving)  # type: ignore[call-overload]
        byte_tokenizer().save_pretrained(folder)
    return folder


def section(name: Path | str | None = None, **keys: Any) -> Any:
    """Return what a recipe's model section holds."""
    plain = {
        "init": None,
        "gguf": None,
        "tokenizer": None,
        "revision": None,
        "dtype": "auto",
        "trust_remote_code": False,
        "rope_factor": 1.0,
        "seed": 0,
    }
    return SimpleNamespace(name=None if name is None else str(name), **(plain | keys))
