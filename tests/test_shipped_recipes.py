"""Every shipped recipe says what it would do and trains two steps, on the bundled model and data.

`make test` draws a third of them; that each loads and validates is held in tests/recipe.
"""

from __future__ import annotations

import pytest
from draw import marked, some

from peftkit import recipe as recipes
from peftkit.plan import plan
from peftkit.tasks import source
from peftkit.training import train

NAMES = [name for name, *_ in recipes.shipped() if name != "bundled/tiny"]


@pytest.fixture(params=marked(NAMES, some("recipes", NAMES, len(NAMES) // 3)))
def small(request, tmp_path):
    """The recipe with the bundled model, the bundled data of its task, and few examples."""
    given = recipes.load(request.param)
    task = given.dataset.name.removeprefix("bundled/")
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "one and one", "completion": "two"}\n' * 8)
    inside = task in source.bundled()
    data = [f"dataset={{name: bundled/{task}}}"] if inside else [f"dataset.path={own}"]
    smaller = ["model=bundled/tiny", *data, "dataset.limit=8", "train.batch_examples=4", "train.batch_tokens=null"]
    return recipes.load(request.param, [*smaller, "train.epochs=null", "train.max_steps=2"])


@pytest.mark.usefixtures("few_validation_examples")
def test_it_says_what_it_would_do_and_does_it(small, tmp_path):
    planned = plan(small)
    assert planned.steps == 2
    assert planned.trainable > 0
    assert any(trained for _, trained in planned.example)
    summary = train(small, tmp_path / "run")
    assert summary.steps == 2
    assert summary.trainable_parameters == planned.trainable
