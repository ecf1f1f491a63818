"""What is drawn from, and which token a number draws."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from peftkit.generation import Settings
from peftkit.generation.choosing import chooser, invert, probabilities
from peftkit.models.tiny import tiny

LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_p": 0.65}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.01}, [0.4, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [4 / 9, 3 / 9, 0, 0]),
    ],
)
def test_the_weights_to_draw_from(settings, expected):
    weights = probabilities(LOGITS, Settings(do_sample=True, **settings))
    torch.testing.assert_close(weights, torch.tensor([expected]))


def test_a_number_draws_the_token_in_whose_share_it_lies():
    weights = torch.tensor([[0.4, 0.0, 0.2, 0.2]]).expand(5, 4)
    assert invert(weights, torch.tensor([0.0, 0.49, 0.51, 0.74, 0.999])) == [0, 0, 2, 2, 3]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    choose = chooser(Settings(do_sample=True))
    drawn = torch.tensor(choose(LOGITS.expand(4000, 4), range(4000)))
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.03, rtol=0)


def test_greedy_takes_the_likeliest():
    assert chooser(Settings())(LOGITS.flip(-1), [0]) == [3]


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        (
            {"temperature": 1.6, "top_k": 20, "top_p": 0.9},
            [TemperatureLogitsWarper(1.6), TopKLogitsWarper(20), TopPLogitsWarper(0.9)],
        ),
    ],
)
def test_what_is_drawn_from_equals_transformers_step_by_step(settings, warpers):
    model = tiny("llama")
    ids = torch.tensor([[5, 6, 7], [9, 40, 2]])
    for _ in range(6):
        with torch.no_grad():
            logits = model(ids).logits[:, -1]
        theirs = logits
        for warper in warpers:
            theirs = warper(ids, theirs)
        ours = probabilities(logits, Settings(do_sample=True, **settings))
        torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), theirs.softmax(-1))
        ids = torch.cat([ids, ours.argmax(-1, keepdim=True)], 1)
