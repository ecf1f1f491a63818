"""LLM-Adapters: each placement is the method that stands there, in the paper's sizes."""

from __future__ import annotations

import pytest
import torch
from subjects_of_methods import IDS, moved

from peftkit.adaptation import attach
from peftkit.methods.llm_adapters import LLMAdapters
from peftkit.methods.lora import LoRA
from peftkit.methods.parallel_adapter import ParallelAdapter
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.models.tiny import tiny
from peftkit.recipe import load

PLACED = {
    "series": PfeifferAdapter(bottleneck=256),
    "parallel": ParallelAdapter(bottleneck=256),
    "lora": LoRA(rank=4, alpha=8, targets=["q", "k", "v", "o", "gate", "up", "down"]),
    "prefix": PrefixTuning(length=10, projection=None),
}


@pytest.mark.parametrize("adapter", PLACED)
def test_each_placement_computes_what_the_method_there_does(adapter):
    adaptation = moved(attach(tiny("llama"), [LLMAdapters(adapter=adapter, rank=4)]))
    twin = attach(tiny("llama"), [PLACED[adapter]])
    twin.load_state(adaptation.state())
    assert torch.equal(adaptation.model(input_ids=IDS).logits, twin.model(input_ids=IDS).logits)


@pytest.mark.parametrize("data", ["math_10k", "commonsense_170k"])
def test_the_recipes_have_the_paper_s_settings_and_search(data):
    recipe = load(f"llm-adapters/{data}")
    assert (recipe.train.learning_rate, recipe.train.batch_examples, recipe.train.max_length) == (3e-4, 16, 256)
    assert recipe.generation.num_beams == 4
    assert recipe.method[0].options["rank"] == 32
