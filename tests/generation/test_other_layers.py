"""Models whose layers keep a state, a convolution or a window give what transformers gives, too."""

from __future__ import annotations

import pytest
import torch
from letters import PROMPTS, Letters, alone, by_transformers
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.generation import Settings, generate
from peftkit.generation.caching import ROWS, choose
from peftkit.generation.decoding import inference
from peftkit.models.tiny import MODERN, tiny

NEW = 10


def hybrid(name, **keys):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(MODERN | keys))).float().eval()


def models():
    yield "lfm2", False, lambda: hybrid("lfm2", layer_types=["conv", "full_attention"])
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "head_dim": 8, "num_experts": 0}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "mlp_only_layers": [0, 1]}
    yield (
        "qwen3_next",
        False,
        lambda: hybrid("qwen3_next", layer_types=["linear_attention", "full_attention"], **linear),
    )
    yield "mistral", True, lambda: tiny("mistral", sliding_window=6)
    yield "gemma3_text", True, lambda: hybrid("gemma3_text", head_dim=8, sliding_window=6, sliding_window_pattern=2)


@pytest.mark.parametrize(("name", "rows", "build"), models(), ids=lambda value: value if isinstance(value, str) else "")
def test_greedy_and_beams(name, rows, build):
    model = build()
    with inference(model):
        way = choose(model, PROMPTS, 1)
    assert (way.name, way.mixed) == (ROWS, rows)
    settings = Settings(max_new_tokens=NEW, ends=(2, 50, 70))
    found = generate(model, Letters(), PROMPTS, settings, batch_size=3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        made = alone(model, prompt, NEW, (2, 50, 70))
        assert answer.ids == (made[:-1] if answer.finished else made)
    beams = {"num_beams": 3, "length_penalty": 0.8}
    found = generate(model, Letters(), PROMPTS, Settings(**{**settings.__dict__, **beams}), batch_size=3)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert (answer.ids, answer.finished) == by_transformers(model, prompt, (2, 50, 70), max_new_tokens=NEW, **beams)
