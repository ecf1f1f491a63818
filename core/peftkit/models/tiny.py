"""Tiny random decoders of many families, small enough that a check on all of them takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from peftkit.errors import PeftkitError, unknown
from peftkit.families import family_of

VOCABULARY = 96
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
MODERN = SPECIAL | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": MODERN,
    "qwen3": MODERN | {"head_dim": 8},
    "gemma": MODERN | {"head_dim": 8},
    "mistral": MODERN | {"sliding_window": None},
    "phi": MODERN,
    "gpt2": SPECIAL
    | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": SPECIAL
    | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"max_position_embeddings": 128, "attention_dropout": 0.0, "hidden_dropout": 0.0},
    "opt": SPECIAL
    | {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"max_position_embeddings": 128, "dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0},
    "bloom": SPECIAL | {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0, "attention_dropout": 0.0},
}
ARCHITECTURES = tuple(SETTINGS)


def tiny(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Build a random decoder: 2 layers of width 32, 4 heads (2 for keys and values), 96 tokens, fp32, eval mode.

    Weights and biases are normal and norm weights spread around their start, so that nothing is trivially zero; the
    global random state stays as it is. `overrides` are configuration keys of the architecture.
    """
    if architecture not in SETTINGS:
        raise PeftkitError(unknown("tiny architecture", architecture, ARCHITECTURES))
    config = AutoConfig.for_model(architecture, **(SETTINGS[architecture] | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = family_of(config).loader.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()
