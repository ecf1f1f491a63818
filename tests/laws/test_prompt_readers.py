"""A method whose adapters depend on the example reads its prompt alone: decoding equals the teacher-forced pass."""

from __future__ import annotations

import pytest
import torch
from ids_for_text import Ends
from subjects import attached, randomise, soft_ids, tokens
from torch import Tensor

from peftkit.generation import Settings, generate
from peftkit.method import METHODS, expand
from peftkit.ports.context import context_of

LENGTHS = (12, 12, 9)
"""Tokens of the prompts; the first two have all but the last one in common."""
NEW = 4


def reading(name: str, position: int, architecture: str):
    """Attach a method that reads prompts; the others are held by the laws of decoding that tell nothing."""
    if not any(part.by_row for part in expand([METHODS[name].from_options({})])):
        pytest.skip("its adapters do not depend on the example")
    model, adaptation = attached(name, position, architecture)
    if not context_of(model).reads_prompts:
        pytest.skip("its adapters do not depend on the example")
    randomise(adaptation)
    return model


def told(ids: Tensor, lengths: list[int]) -> Tensor:
    return torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]


def test_cached_steps_equal_the_whole_that_knows_the_prompt(name, position, architecture):
    model = reading(name, position, architecture)
    context, soft = context_of(model), soft_ids(model)
    ids = torch.cat([torch.tensor([soft] * 2, dtype=torch.long), tokens(2, 8)], 1)
    first = len(soft) + 5
    with torch.no_grad():
        with context.prompted(told(ids, [first, first])):
            whole = model(input_ids=ids).logits[:, first - 1 :]
        with context.prompted(torch.ones(2, first, dtype=torch.bool)):
            out = model(input_ids=ids[:, :first], use_cache=True)
        steps = [out.logits[:, -1]]
        for index in range(first, ids.shape[1]):
            out = model(input_ids=ids[:, index : index + 1], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[:, -1])
        untold = model(input_ids=ids).logits[:, first - 1 :]
    assert (torch.stack(steps, 1) - whole).abs().max() <= 1e-4
    assert (untold - whole).abs().max() > 1e-4


def test_answers_of_prompts_that_begin_alike_are_those_of_each_alone(name, position, architecture):
    model = reading(name, position, architecture)
    base, soft = tokens(1, max(LENGTHS))[0].tolist(), soft_ids(model)
    prompts = [[*soft, *base[: length - 1], 90 + row] for row, length in enumerate(LENGTHS)]
    answers = generate(model, Ends(), prompts, Settings(max_new_tokens=NEW, ends=()))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + len(answer.ids):
            row = torch.tensor([ids])
            with torch.no_grad(), context_of(model).prompted(told(row, [len(prompt)])):
                ids.append(int(model(input_ids=row).logits[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]
