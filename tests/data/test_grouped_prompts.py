"""Examples of one prompt stay beside each other: `Batches` with `group_prompts`."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftkit.data.batches import Batches
from peftkit.data.encode import IGNORED, Encoded
from peftkit.kernels.tree import SHARED, grow


def answers(sizes, prompt=SHARED):
    """Rows of `sizes[n]` answers to the n-th prompt of `prompt` tokens; the rows of a prompt lie far apart."""
    rows = []
    for turn in range(max(sizes, default=0)):
        for number, size in enumerate(sizes):
            if turn < size:
                start = [1000 + number] * prompt
                answer = [1 + (number * 7 + turn + place) % 50 for place in range(1 + (number + turn) % 9)]
                rows.append(Encoded(start + answer, [IGNORED] * prompt + answer))
    return rows


def members(rows):
    """List the positions of each prompt's rows."""
    found = {}
    for index, row in enumerate(rows):
        found.setdefault(row.ids[0], []).append(index)
    return list(found.values())


def parted(plan, rows):
    """Count how often the rows of a prompt are parted by the border of a micro-batch."""
    groups = members(rows)
    return sum(sum(bool(set(batch) & set(group)) for batch in plan) - 1 for group in groups)


def computed(plan, rows):
    return sum(len(grow([rows[index].ids for index in batch]).ids) for batch in plan)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=60),
    st.integers(1, 120),
    st.booleans(),
    st.integers(0, 2**31),
    st.integers(0, 5),
)
def test_groups_stay_together_and_every_example_is_seen_once(sizes, limit, by_tokens, seed, epoch):
    rows = answers(sizes)
    limits = {"batch_tokens": limit} if by_tokens else {"batch_examples": limit}
    batches = Batches(rows, **limits, seed=seed, group_prompts=True)
    plan = batches.plan(epoch)
    assert sorted(index for batch in plan for index in batch) == list(range(len(rows)))
    for batch in plan:
        padded = max(len(rows[index].ids) for index in batch) * len(batch)
        assert len(batch) <= limit if not by_tokens else (padded <= limit or len(batch) == 1)
        prompts = [rows[index].ids[0] for index in batch]
        assert [a == b for a, b in pairwise(prompts)].count(False) == len(set(prompts)) - 1
    # Each border of two micro-batches goes through one group at most.
    assert parted(plan, rows) <= len(plan) - 1
    assert Batches(rows, **limits, seed=seed, group_prompts=True).plan(epoch) == plan


def test_the_number_of_micro_batches_is_what_it_is_without():
    rows = answers([5] * 40)
    plans = [Batches(rows, batch_examples=8, group_prompts=grouped).plan(0) for grouped in (False, True)]
    assert len(plans[0]) == len(plans[1]) == 25
    assert all(len(batch) == 8 for batch in plans[1])


@pytest.mark.parametrize("limits", [{"batch_tokens": 200}, {"batch_examples": 12}], ids=str)
def test_fewer_tokens_are_computed(limits):
    rows = answers([6] * 50, prompt=20)
    tokens = [computed(Batches(rows, **limits, group_prompts=on).plan(0), rows) for on in (False, True)]
    assert tokens[1] < 0.6 * tokens[0]


def test_epochs_and_seeds_shuffle_the_groups_and_the_examples_of_a_group():
    rows = answers([4] * 60)
    plans = [
        Batches(rows, batch_examples=12, seed=seed, group_prompts=True).plan(epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(plans[a] != plans[b] for a in range(4) for b in range(a))
    company = [{frozenset(rows[index].ids[0] for index in batch) for batch in plan} for plan in plans]
    assert all(company[a] != company[b] for a in range(4) for b in range(a))
    orders = set()
    for epoch in range(60):
        order = [index for batch in Batches(rows, batch_examples=12, group_prompts=True).plan(epoch) for index in batch]
        orders.add(tuple(index for index in order if rows[index].ids[0] == 1000))
    assert len(orders) > 15


def test_a_small_group_comes_no_later_than_a_large_one():
    rows = answers([1, 9] * 50)
    firsts = Counter()
    for seed in range(40):
        plan = Batches(rows, batch_examples=10, seed=seed, group_prompts=True).plan(0)
        for place, batch in enumerate(plan):
            for index in batch:
                firsts[(rows[index].ids[0] - 1000) % 2] += place / len(plan) / 40
    assert firsts[0] / 50 == pytest.approx(firsts[1] / 450, rel=0.15)


def test_prompts_that_are_too_short_to_share_are_not_grouped():
    rows = answers([4] * 30, prompt=SHARED - 1)
    assert Batches(rows, batch_examples=6, group_prompts=True).plan(1) == Batches(rows, batch_examples=6).plan(1)


def test_one_prompt_for_all_is_no_group():
    """Each micro-batch shares it anyway, and examples of like length stay together."""
    rows = answers([200])
    assert Batches(rows, batch_tokens=90, group_prompts=True).plan(1) == Batches(rows, batch_tokens=90).plan(1)


def test_prompts_are_told_apart_by_their_ids_before_the_first_trained_token():
    start = list(range(SHARED))
    rows = [
        Encoded([*start, 50, 51], [IGNORED] * SHARED + [50, 51]),
        Encoded([*start, 50, 52], [IGNORED] * (SHARED + 1) + [52]),
        Encoded([*start, 53], [IGNORED] * SHARED + [53]),
    ]
    assert Batches(rows, batch_examples=2, group_prompts=True).groups == [[0, 2], [1]]
