"""Beam search, and n-grams that may not come again, give what transformers' own decoding gives."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from letters import PROMPTS, Letters, alone, by_transformers

from peftkit.adaptation import attach
from peftkit.generation import Settings, generate
from peftkit.method import METHODS
from peftkit.models.tiny import ARCHITECTURES, tiny

NEW = 10
ENDS = (2, 17, 58, 71)


def check(model, prompts, ends=ENDS, batch_size=4, new=NEW, **settings):
    """Hold our answers to be those of transformers; returns them."""
    found = generate(
        model, Letters(), prompts, Settings(max_new_tokens=new, ends=ends, **settings), batch_size=batch_size
    )
    for prompt, answer in zip(prompts, found, strict=True):
        assert (answer.ids, answer.finished) == by_transformers(model, prompt, ends, max_new_tokens=new, **settings)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_papers_setting_on_every_architecture(architecture):
    check(tiny(architecture), PROMPTS, num_beams=4, length_penalty=0.8, no_repeat_ngram_size=2)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.8, 2.0])
def test_every_way_to_end(early_stopping, length_penalty):
    model = tiny("llama")
    settings = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    found = check(model, PROMPTS, num_beams=3, **settings)
    assert any(answer.finished for answer in found) or length_penalty > 1


@pytest.mark.parametrize("seed", range(3))
def test_long_answers_of_many_prompts_in_a_small_batch(seed):
    chance = random.Random(seed)
    prompts = [[chance.randrange(3, 96) for _ in range(chance.randrange(1, 20))] for _ in range(9)]
    check(tiny("llama", seed=seed), prompts, ends=(2, 40), batch_size=3, new=70, num_beams=2, no_repeat_ngram_size=3)


def test_one_step_and_more_beams_than_tokens_to_end():
    check(tiny("gpt2"), PROMPTS[:3], new=1, num_beams=5)
    check(tiny("gpt2"), PROMPTS[:3], ends=(2,), num_beams=10, new=4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_greedy_without_repeats(size):
    model = tiny("llama")
    found = check(model, PROMPTS, ends=(2,), new=30, no_repeat_ngram_size=size)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = prompt + answer.ids
        grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
        assert len(set(grams[len(prompt) :])) == len(grams[len(prompt) :])


def test_the_prompt_can_be_left_out_of_what_may_not_come_again():
    model = tiny("llama")
    first = alone(model, [5, 6], 1, ())
    prompt = [5, 6, *first, 5, 6]
    free = alone(model, prompt, 1, ())
    prompt = [5, 6, *free, *first, 5, 6]
    settings = {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "ends": ()}
    found = generate(model, Letters(), [prompt], Settings(**settings, no_repeat_ngram_prompt=False))[0].ids
    assert found[:2] == alone(model, prompt, 2, ())
    bigrams = list(pairwise(found))
    assert len(set(bigrams)) == len(bigrams)


@pytest.mark.parametrize("name", ["lora", "prompt-tuning", "prefix-tuning", "ia3"])
@pytest.mark.parametrize("beams", [1, 3])
def test_with_a_method_attached(name, beams):
    model = tiny("llama")
    adaptation = attach(model, [METHODS[name].from_options({})])
    torch.manual_seed(3)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=0.5)
    prompts = [[*adaptation.soft_ids, *prompt] for prompt in PROMPTS]
    base = generate(tiny("llama"), Letters(), PROMPTS, Settings(max_new_tokens=NEW, ends=ENDS, num_beams=beams))
    assert [answer.ids for answer in check(model, prompts, num_beams=beams)] != [answer.ids for answer in base]


def test_a_stop_text_ends_a_beam():
    model = tiny("gpt2")
    whole = generate(model, Letters(), [[5, 6, 7]], Settings(max_new_tokens=NEW, ends=(), num_beams=3))[0].text
    settings = Settings(max_new_tokens=NEW, ends=(), num_beams=3, stop=(whole[2:4],), early_stopping=True)
    answer = generate(model, Letters(), [[5, 6, 7]], settings)[0]
    assert whole[2:4] not in answer.text
