"""LoRA with a prompt: without the one the other alone, each at its own rate."""

from __future__ import annotations

import torch
from subjects_of_methods import IDS, moved

from peftkit.adaptation import attach
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_prompt import LoRAPrompt
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny


def logits(model, soft):
    front = torch.tensor(soft, dtype=torch.long).expand(len(IDS), -1)
    with torch.no_grad():
        return model(input_ids=torch.cat([front, IDS], 1)).logits


def test_without_the_one_it_is_the_other_bit_for_bit():
    both = moved(attach(tiny("llama"), [LoRAPrompt(rank=4, length=5)]))
    state = both.state()
    lora = attach(tiny("llama"), [LoRA(rank=4)])
    lora.load_state({key: state[key] for key in lora.state()})
    prompt = attach(tiny("llama"), [PromptTuning(length=5)])
    prompt.load_state({key: state[f"1{key[1:]}"] for key in prompt.state()})
    with both.without([1]):
        assert both.soft_ids == ()
        assert torch.equal(logits(both.model, both.soft_ids), logits(lora.model, ()))
    with both.without([0]):
        assert torch.equal(logits(both.model, both.soft_ids), logits(prompt.model, prompt.soft_ids))
    assert not torch.allclose(logits(both.model, both.soft_ids), logits(prompt.model, prompt.soft_ids))


def test_the_prompt_is_trained_at_a_multiple_of_the_rate():
    adaptation = attach(tiny("llama"), [LoRAPrompt(ratio=20.0)])
    groups = adaptation.groups(None, 0.0)
    rates = {key.partition("/")[0]: group["lr"] for group in groups for key in group["keys"]}
    assert rates["1"] == 20 * rates["0"]
    assert {group["lr"] for group in adaptation.groups(0.01, 0.0)} == {0.01, 0.2}
