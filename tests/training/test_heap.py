"""A heap takes what is held at once, and what it cannot use again."""

from __future__ import annotations

import random

from peftkit.training.heap import ALIGNED, MAPPED, heap_peak


def test_what_is_held_at_once_is_the_least():
    assert heap_peak([(0, 1000), (1, 500), (0, -1000), (1, -500)]) == 1500


def test_a_chunk_of_the_same_size_is_not_used_again():
    """Aligned memory is looked for in larger chunks alone; behind it something is held, so that the heap grows."""
    assert heap_peak([(0, 1000), (1, 500), (0, -1000), (2, 1000)]) == 2500


def test_a_chunk_that_is_larger_by_the_alignment_is():
    assert heap_peak([(0, 1000 + ALIGNED), (1, 500), (0, -1000 - ALIGNED), (2, 1000)]) == 1500 + ALIGNED


def test_free_neighbours_are_one_chunk():
    events = [(0, 600), (1, 600), (2, 500), (0, -600), (1, -600), (3, 1100)]
    assert heap_peak(events) == 1700
    assert heap_peak([*events[:3], (1, -600), (0, -600), (3, 1100)]) == 1700


def test_the_heap_grows_from_a_free_chunk_at_its_end():
    assert heap_peak([(0, 100), (1, 600), (1, -600), (2, 900)]) == 1000


def test_large_memory_is_given_back():
    assert heap_peak([(0, MAPPED), (0, -MAPPED), (1, MAPPED)]) == MAPPED


def test_it_is_never_less_than_what_is_held():
    draw, held, events = random.Random(0), {}, []
    most = 0
    for number in range(2000):
        if held and draw.random() < 0.5:
            key = draw.choice(list(held))
            events.append((key, -held.pop(key)))
        else:
            held[number] = draw.randrange(1, 5000)
            events.append((number, held[number]))
        most = max(most, sum(held.values()))
    assert most <= heap_peak(events) < 3 * most
