"""Micro-batches: complete, within their limit, little padding, the same again from seed and epoch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.errors import PeftkitError


def rows(lengths):
    return [Encoded(list(range(length)), list(range(length))) for length in lengths]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(1, 100),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(0, 5),
)
def test_a_plan_is_complete_within_its_limit_and_repeatable(lengths, limit, by_tokens, seed, epoch):
    limits = {"batch_tokens": limit} if by_tokens else {"batch_examples": limit}
    batches = Batches(rows(lengths), **limits, seed=seed)
    plan = batches.plan(epoch)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        padded = max(lengths[index] for index in batch) * len(batch)
        assert len(batch) <= limit if not by_tokens else (padded <= limit or len(batch) == 1)
    assert Batches(rows(lengths), **limits, seed=seed).plan(epoch) == plan


def test_epochs_and_seeds_differ():
    lengths = [length % 37 + 1 for length in range(500)]
    plans = [Batches(rows(lengths), batch_tokens=200, seed=seed).plan(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(plans[a] != plans[b] for a in range(4) for b in range(a))


def test_the_order_is_the_same_on_every_machine():
    # Written down once: a change of the order would break the resuming of runs.
    plan = Batches(rows([3, 1, 4, 1, 5, 9, 2, 6]), batch_tokens=10, seed=7).plan(2)
    assert plan == [[3, 1, 6], [5], [7], [0, 2], [4]]


def test_like_lengths_go_together_yet_batches_come_in_random_order():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 200, (3000,), generator=generator).tolist()
    plan = Batches(rows(lengths), batch_tokens=2000, seed=1).plan(0)
    widths = [max(lengths[index] for index in batch) for batch in plan]
    padded = sum(width * len(batch) for width, batch in zip(widths, plan, strict=True))
    assert sum(lengths) / padded > 0.9
    mean = sum(widths) / len(widths)
    half = len(widths) // 2
    assert abs(sum(widths[:half]) / half - mean) < 0.2 * mean


def test_collating_pads_on_the_right_and_counts():
    encoded = [Encoded([5, 6, 7], [-100, 6, 7]), Encoded([8], [8]), Encoded([1, 2], [1, 2])]
    batch = Batches(encoded, batch_examples=3).collate([0, 1, 2], pad_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9], [1, 2, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.labels.tolist() == [[-100, 6, 7], [8, -100, -100], [1, 2, -100]]
    assert (batch.trained, batch.tokens, batch.examples) == (3, 6, 3)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == torch.long
    assert batch.to("cpu").labels.tolist() == batch.labels.tolist()


@pytest.mark.parametrize(
    ("encoded", "limits", "message"),
    [
        (rows([1]), {}, "exactly one"),
        (rows([1]), {"batch_tokens": 1, "batch_examples": 1}, "exactly one"),
        (rows([1]), {"batch_tokens": 0}, "at least 1, found 0"),
        ([], {"batch_tokens": 8}, "empty"),
    ],
)
def test_what_cannot_be_batched_is_refused(encoded, limits, message):
    with pytest.raises(PeftkitError, match=message):
        Batches(encoded, **limits)
