"""A sweep is the product of its values, each the same as an override."""

from __future__ import annotations

from typing import Any

import pytest

from peftkit.errors import PeftkitError
from peftkit.recipe import load, load_sweep

KEYS = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}


def test_the_product_of_the_values_named_by_them():
    keys = {**KEYS, "sweep": {"rank": [2, 4], "train.learning_rate": [1e-4, 3e-4]}}
    found = load_sweep(keys, ["train.max_steps=7"])
    assert {name: (r.method[0].options["rank"], r.train.learning_rate) for name, r in found.items()} == {
        "rank-2_learning_rate-0.0001": (2, 1e-4),
        "rank-2_learning_rate-0.0003": (2, 3e-4),
        "rank-4_learning_rate-0.0001": (4, 1e-4),
        "rank-4_learning_rate-0.0003": (4, 3e-4),
    }
    for recipe in found.values():
        assert recipe.train.max_steps == 7
        given = [f"rank={recipe.method[0].options['rank']}", f"train.learning_rate={recipe.train.learning_rate}"]
        assert recipe == load(KEYS, [*given, "train.max_steps=7"])
        assert "sweep" not in recipe.to_yaml()


def test_values_of_any_kind_and_keys_that_end_alike():
    methods = ["lora", {"dora": {"alpha": 3}}, ["ia3", "prompt-tuning"]]
    keys = {**KEYS, "sweep": {"method": methods, "model.seed": [1], "train.seed": [2, 3]}}
    found = load_sweep(keys)
    assert [[choice.name for choice in recipe.method] for recipe in found.values()] == [
        ["lora"],
        ["lora"],
        ["dora"],
        ["dora"],
        ["ia3", "prompt-tuning"],
        ["ia3", "prompt-tuning"],
    ]
    assert list(found)[2] == "method-dora-alpha-3_model.seed-1_train.seed-2"
    assert all("/" not in name for name in found)


def test_values_whose_names_are_cut_alike_have_names_of_their_own():
    long = "x" * 60
    found = load_sweep({**KEYS, "sweep": {"dataset.path": [long + "1", long + "2"]}})
    assert len(found) == 2


def test_a_recipe_without_a_sweep_is_itself():
    assert load_sweep(KEYS) == {"": load(KEYS)}


def test_a_single_recipe_is_not_made_of_a_sweep():
    keys = {**KEYS, "sweep": {"rank": [2, 4]}}
    with pytest.raises(PeftkitError, match="has a sweep over rank"):
        load(keys)
    assert load(keys, ["sweep={}"]) == load(KEYS)


@pytest.mark.parametrize(
    ("sweep", "overrides", "told"),
    [
        ({"rnk": [2]}, [], "did you mean 'rank'"),
        ({"rank": ["x"]}, [], "rank: found 'x'"),
        ({"rank": 3}, [], "sweep.rank: found 3 .*allowed: a mapping of keys, each with a list"),
        ({"rank": []}, [], "sweep.rank: found"),
        (3, [], "sweep: found 3"),
        ({"rank": [2, 2]}, [], "found a value twice"),
        ({"rank": [2, 4]}, ["rank=8"], "rank is given and swept"),
        ({"output": ["a", "b"]}, [], "sweep.output"),
        (
            {"rank": list(range(1, 12)), "train.seed": list(range(12))},
            [],
            "found 132 combinations; allowed: at most 100",
        ),
    ],
)
def test_mistakes_are_told(sweep: Any, overrides: list[str], told: str):
    with pytest.raises(PeftkitError, match=told):
        load_sweep({**KEYS, "sweep": sweep}, overrides)
