"""Every task whose sample ships: what its files hold arrives, references are kept, and the gold outputs are scored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from peftkit.data.example import Example
from peftkit.metrics import METRICS
from peftkit.tasks import TASKS
from peftkit.tasks.source import BUNDLED, bundled

SPLITS = ("train", "validation", "test")


def kept(examples: Sequence[Example]) -> list[str]:
    """Return all references of the examples, in order of the alphabet."""
    return sorted(reference for example in examples for reference in example.references)


@pytest.mark.parametrize("name", bundled())
def test_every_split_arrives_and_its_references_with_it(name):
    task = TASKS[name]
    splits = [split for split in SPLITS if split in task.files] or list(SPLITS)
    for split in splits:
        examples = task.read(BUNDLED / name, split)
        assert examples, split
        assert examples == task.read(BUNDLED / name, split)
        assert len({example.id for example in examples}) == len(examples)
        for example in examples:
            assert example.prompt
            assert all(turn.text for turn in example.turns)
            assert example.references, example.id
        groups = task.group(examples)
        assert kept(groups) == kept(examples)


@pytest.mark.parametrize("name", bundled())
def test_gold_outputs_are_scored(name):
    task = TASKS[name]
    examples = task.group(task.read(BUNDLED / name, "test" if "test" in task.files else "validation"))[:8]
    scores = task.score(examples, [example.references[0] for example in examples])
    keys = {key for metric in task.metrics for key in METRICS[metric].keys}
    assert keys <= scores.keys() | scores.unavailable.keys()
    assert all(math.isfinite(figure) for figure in scores.values())
    assert task.headline is None or task.headline in keys


def test_what_has_no_sample_reads_a_persons_own_files():
    assert all(not TASKS[name].files for name in TASKS.names() if name not in bundled())
