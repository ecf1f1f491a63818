"""What a comparison is made of: labels, sizes by budget, refusals, and recipes that differ in the methods alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.adaptation import count_stored
from peftkit.comparison import entries
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load as load_model
from peftkit.quantization.quantizer import formats
from peftkit.recipe import CompareSection, load


def recipe(quantization="none", **compare):
    keys = {"model": "bundled/tiny", "method": {"lora": {"targets": "linear"}}, "dataset": "bundled/e2e"}
    return load({**keys, "quantization": quantization, "rank": 4, "compare": compare})


def test_the_recipes_own_method_has_its_options_and_others_their_defaults():
    own, other, pair, sized = entries(recipe(methods=["lora", "dora", "lora+ia3", {"lora": {"rank": 2}}]))
    assert own.label == "lora (rank 4, targets linear)"
    assert other.label == "dora"
    assert [method.name for method in pair.methods] == ["lora", "ia3"]
    assert sized.label == "lora (rank 2)"
    assert len({entry.slug for entry in (own, other, pair, sized)}) == 4


def test_all_stands_for_every_method_and_what_does_not_suit_is_told():
    found = {entry.methods[0].name: entry for entry in entries(recipe(methods="all"))}
    assert list(found) == METHODS.names()
    assert "no bias" in str(found["bitfit"].refused) or "bias" in str(found["bitfit"].refused)
    assert not found["lora"].refused


def test_a_method_that_needs_a_storage_names_the_formats_and_runs_on_one():
    needing = [name for name, cls in METHODS.items() if cls.needs is not None]
    assert needing
    for name in needing:
        able = formats(METHODS[name].needs)
        (refused, _) = entries(recipe(methods=[name, "lora"]))
        assert f"{name}: the weight of" in refused.refused
        assert f"set quantization to one of {', '.join(able)}" in refused.refused
        (entry,) = entries(recipe(able[0], methods=[name]))
        assert not entry.refused


def test_the_runs_of_an_entry_differ_from_the_recipe_in_methods_and_seed_alone():
    base = recipe(methods=["dora"], seeds=3)
    (entry,) = entries(base)
    assert entry.seeds == (42, 43, 44)
    run = entry.recipe(base, 44)
    assert [choice.name for choice in run.method] == ["dora"]
    assert run.train.seed == 44
    assert run.compare == CompareSection()
    same = {"method", "train", "compare", "output"}
    assert run.model_dump(exclude=same) == base.model_dump(exclude=same)
    assert load({**base.model_dump(exclude=same), "method": {"dora": dict(run.method[0].options)}}).method == run.method


def test_a_budget_sizes_each_method_and_tells_its_size():
    budget = 40_000
    found = entries(recipe(methods=["lora", "krona", "serial-adapter", "lora+prompt-tuning", "ia3"], budget=budget))
    layout = Layout(load_model(recipe().model, device="meta", weights=False).model)
    for entry in found:
        stored = sum(count_stored(method, layout) for method in entry.methods)
        if "fixed" in entry.note:
            assert entry.label == "ia3"
        elif "%" not in entry.note:
            assert abs(stored / budget - 1) <= 0.01, entry
    assert found[0].note.startswith("rank ")
    assert sum("%" not in entry.note and "fixed" not in entry.note for entry in found) >= 2


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "nothing is compared"),
        (["lora", "lora"], "twice"),
        (["bitfit"], "none of the methods suits the model"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, message):
    with pytest.raises(PeftkitError, match=message):
        entries(recipe(methods=methods))


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["lroa"], "did you mean 'lora'"),
        ([{"dora": {"rnk": 3}}], "compare.methods.dora.rnk: unknown key.*did you mean 'rank'"),
        ([{"lora": {}, "dora": {}}], "found a mapping of 2 keys"),
        ([[]], "compare.methods.0: found an empty list"),
        (7, "found 7"),
    ],
)
def test_mistakes_are_told_as_those_of_method(methods, message):
    with pytest.raises(PeftkitError, match=message):
        recipe(methods=methods)


def test_the_resolved_recipe_builds_the_same_comparison(tmp_path):
    first = recipe(methods=["lora", "dora+ia3", {"vera": {"rank": 3}}], seeds=2, budget=1e4)
    (tmp_path / "recipe.yaml").write_text(first.to_yaml())
    assert load(tmp_path / "recipe.yaml") == first
    assert "compare" not in load("quickstart").to_yaml()


def test_fractions_multiply_the_entries_and_smaller_parts_lie_inside_larger_ones():
    from peftkit.tasks.source import load as load_data

    base = recipe(methods=["lora", "dora"], fractions=[0.05, 1.0], seeds=2)
    found = entries(base)
    assert [entry.label for entry in found] == [
        *("lora (rank 4, targets linear) on 5 %", "dora on 5 %"),
        *("lora (rank 4, targets linear) on 100 %", "dora on 100 %"),
    ]
    assert len({entry.folder(Path("c"), 42) for entry in found}) == 4
    small, large = found[0].recipe(base, 43), found[2].recipe(base, 43)
    assert (small.dataset.fraction, small.dataset.seed, large.dataset.seed) == (0.05, 1, 1)
    parts = [{example.id for example in load_data(one.dataset, "train").examples} for one in (small, large)]
    assert parts[0] < parts[1]
    other = load_data(found[0].recipe(base, 42).dataset, "train").examples
    assert {example.id for example in other} != parts[0]
    with pytest.raises(PeftkitError, match="fractions"):
        recipe(methods=["lora"], fractions=[1.5])


def test_the_compact_structures_are_sized_to_one_budget():
    shipped = load("compare/compact-lowrank")
    found = entries(shipped)
    assert [entry.methods[0].name for entry in found][:3] == ["lora", "moslora", "vera"]
    layout = Layout(load_model(shipped.model, device="meta", weights=False).model)
    stored = {entry.methods[0].name: count_stored(entry.methods[0], layout) for entry in found}
    budget = shipped.compare.budget
    # Kronecker products come in few sizes; everything else meets the budget.
    few = {"krona", "kadaptation"}
    assert all(abs(count / budget - 1) < (0.3 if name in few else 0.01) for name, count in stored.items())
