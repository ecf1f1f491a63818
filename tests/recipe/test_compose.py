"""Included parts and overrides: the order in which they count, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peftkit.errors import PeftkitError
from peftkit.recipe import load, part_names
from peftkit.recipe.tree import Dumper

BASE = {"model": "bundled/tiny", "method": "lora", "dataset": "e2e"}


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def dump(value, **options) -> str:
    """YAML of values as our own loader reads them: PyYAML's writes `1e5` and the line breaks of Unicode bare."""
    return yaml.dump(value, Dumper=Dumper, allow_unicode=True, **options)


def refused(source, *overrides: str) -> str:
    with pytest.raises(PeftkitError) as caught:
        load(source, overrides)
    return str(caught.value)


def test_later_parts_then_own_keys_then_overrides(tmp_path):
    write(tmp_path, "a.yaml", "train: {epochs: 1, seed: 1, clip: 1.5, max_length: 64}\n")
    write(tmp_path, "parts/b.yaml", "include: [../c.yaml]\ntrain: {seed: 2, clip: 2.5, max_length: 128}\n")
    write(tmp_path, "c.yaml", "model: m\ntrain: {seed: 9, warmup: 0.5}\n")
    path = write(
        tmp_path,
        "recipe.yaml",
        "include: [a.yaml, parts/b.yaml]\nmethod: lora\ndataset: e2e\ntrain: {clip: 3.5, max_length: 256}\n",
    )
    recipe = load(path, ["train.max_length=512"])
    train = recipe.train
    assert (train.epochs, train.warmup, train.seed, train.clip, train.max_length) == (1.0, 0.5, 2, 3.5, 512)
    assert recipe.model.name == "m"
    assert recipe.include == ()


def test_short_forms_merge_as_their_long_forms():
    parts = {**BASE, "include": "methods/lora-all-linear"}
    assert load(parts).method[0].options["targets"] == "linear"
    assert load({**parts, "method": {"lora": {"alpha": 3}}}).method[0].options["targets"] == "linear"


def test_naming_another_thing_replaces_the_section(tmp_path):
    write(
        tmp_path,
        "part.yaml",
        "model: {name: a, revision: x}\ndataset: {name: e2e, path: p}\nmethod: {lora: {alpha: 3}}\n",
    )
    path = write(tmp_path, "r.yaml", "include: [part.yaml]\nmodel: b\ndataset: {limit: 5}\nmethod: [full, lora]\n")
    recipe = load(path)
    assert (recipe.model.name, recipe.model.revision) == ("b", None)
    assert (recipe.dataset.name, recipe.dataset.path, recipe.dataset.limit) == ("e2e", "p", 5)
    assert recipe.method[1].options["alpha"] == 16.0


def test_mistake_in_a_part_is_told_at_the_part(tmp_path):
    part = write(tmp_path, "part.yaml", "\ntrain:\n  epohcs: 3\n")
    path = write(tmp_path, "r.yaml", "include: [part.yaml]\nmodel: b\nmethod: lora\ndataset: e2e\n")
    assert refused(path).startswith(f"{part}:3: train.epohcs: unknown key")


def test_circles_and_unknown_parts_are_refused(tmp_path):
    write(tmp_path, "a.yaml", "include: [b.yaml]\n")
    write(tmp_path, "b.yaml", "include: [a.yaml]\n")
    path = write(tmp_path, "r.yaml", "model: m\ninclude: [a.yaml]\n")
    assert "b.yaml:1: include: found a circle" in refused(path)
    assert refused(write(tmp_path, "s.yaml", "include: [r.yaml, hardware/laptpo]\n")).count("\n") == 1
    assert "did you mean 'hardware/laptop'?" in refused({**BASE, "include": ["hardware/laptpo"]})
    assert "there is no file" in refused({**BASE, "include": ["missing.yaml"]})
    assert "allowed: a list of parts" in refused({**BASE, "include": [3]})
    assert "allowed: a list of parts" in refused({**BASE, "include": {"a": 3}})


def test_recipe_that_includes_itself_is_refused(tmp_path):
    path = write(tmp_path, "r.yaml", "include: [r.yaml]\nmodel: m\nmethod: lora\ndataset: e2e\n")
    assert "found a circle" in refused(path)


def test_includes_that_grow_without_end_are_refused(tmp_path):
    for i in range(12):
        write(tmp_path, f"p{i}.yaml", f"include: [p{i + 1}.yaml, p{i + 1}.yaml]\n")
    write(tmp_path, "p12.yaml", "train: {seed: 1}\n")
    assert "more than 100 parts" in refused(tmp_path / "p0.yaml")


def test_include_can_be_overridden():
    assert load(BASE, ["include=[hardware/laptop]"]).train.precision == "fp32"
    assert load({**BASE, "include": ["hardware/laptop"]}, ["include=null"]).train.precision == "auto"


@pytest.mark.parametrize("name", part_names())
def test_every_part_makes_a_recipe(name):
    recipe = load({"include": [name], **needed(name)})
    assert load(yaml.safe_load(recipe.to_yaml())) == recipe


def needed(name: str) -> dict[str, str]:
    own = {"models": "model", "methods": "method", "datasets": "dataset"}.get(name.partition("/")[0])
    return {key: value for key, value in BASE.items() if key != own}


# Overrides ----------------------------------------------------------------------------------------------------------

LONG = {
    "model": {"name": "bundled/tiny", "seed": 1},
    "method": [{"lora": {"alpha": 4, "rank": 2}}, "full"],
    "dataset": "e2e",
    "train": {"epochs": 2, "betas": [0.1, 0.2], "clip": 1.0},
    "output": "runs/a",
}


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("dataset.path=x", {"dataset": {"name": "e2e", "path": "x"}}),
        ("dataset.path=a=b", {"dataset": {"name": "e2e", "path": "a=b"}}),
        ("dataset=gsm8k", {"dataset": "gsm8k"}),
        ("model=other", {"model": "other"}),
        ("model.seed=2", {"model": {"name": "bundled/tiny", "seed": 2}}),
        ("method=lora", {"method": "lora"}),
        ("method=[full,lora]", {"method": ["full", "lora"]}),
        ("method.lora.alpha=16", {"method": [{"lora": {"alpha": 16, "rank": 2}}, "full"]}),
        ("method.0.lora.alpha=16", {"method": [{"lora": {"alpha": 16, "rank": 2}}, "full"]}),
        ("method.lora=null", {"method": ["lora", "full"]}),
        ("method.full.learning_rate=1e-3", {"method": [LONG["method"][0], {"full": {"learning_rate": 0.001}}]}),
        ("method.1=lora", {"method": [LONG["method"][0], "lora"]}),
        ("train.betas.1=0.5", {"train": {"epochs": 2, "betas": [0.1, 0.5], "clip": 1.0}}),
        ("train.clip=null", {"train": {"epochs": 2, "betas": [0.1, 0.2], "clip": None}}),
        ("train.clip=", {"train": {"epochs": 2, "betas": [0.1, 0.2], "clip": None}}),
        ("train=null", {"train": None}),
        ("train={epochs: 5}", {"train": {"epochs": 5}}),
        ("eval.limit=5", {"eval": {"limit": 5}}),
        ("generation.stop=['.', \"\\n\"]", {"generation": {"stop": [".", "\n"]}}),
        ("output=null", {"output": None}),
    ],
)
def test_override_is_the_same_edit_in_the_file(tmp_path, text, edit):
    path = write(tmp_path, "recipe.yaml", dump(LONG))
    edited = write(tmp_path, "edited.yaml", dump({**LONG, **edit}))
    assert load(path, [text]) == load(edited)
    assert load(path, [text]) != load(path)


EDITS = st.sampled_from(
    [
        ("train.epochs", st.floats(0.1, 50)),
        ("train.max_steps", st.integers(1, 10**6) | st.none()),
        ("train.schedule", st.sampled_from(["cosine", "linear", "constant"])),
        ("train.log", st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2)),
        ("train.betas", st.lists(st.floats(0, 0.99), min_size=2, max_size=2)),
        ("dataset.path", st.text("abc/=.: #'\"é~", min_size=1, max_size=8) | st.none()),
        ("dataset.fraction", st.floats(1e-6, 1)),
        ("model.name", st.text("ab/1e-_=", min_size=1, max_size=8)),
        ("generation.stop", st.lists(st.text(min_size=1, max_size=4), max_size=3)),
        ("eval.split", st.sampled_from(["test", "validation", "null", "1e5", "yes"])),
    ]
).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edit=EDITS)
@example(edit=("generation.stop", ["\x85"]))
@example(edit=("generation.stop", ["\0"]))
@example(edit=("eval.split", "1e5"))
def test_any_override_equals_its_edit(tmp_path, edit):
    key, value = edit
    section, _, name = key.partition(".")
    long = {**LONG, "dataset": {"name": "e2e"}}
    edited = {**long, section: {**long.get(section, {}), name: value}}
    path = write(tmp_path, "recipe.yaml", dump(long))
    text = dump([value], default_flow_style=True, width=10**6).strip()
    assert outcome(path, [f"{key}={text[1:-1]}"]) == outcome(write(tmp_path, "edited.yaml", dump(edited)), [])


def outcome(path: Path, overrides: list[str]):
    """The recipe, or what is found fault with, without the place."""
    try:
        return load(path, overrides)
    except PeftkitError as error:
        return str(error).partition(": found ")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.epochs", "allowed: key=value with a dotted key"),
        ("=3", "allowed: key=value with a dotted key"),
        ("train..epochs=3", "allowed: key=value with a dotted key"),
        ("train.epoch=3", "override 'train.epoch=3': train.epoch: unknown key; allowed: epochs, max_steps"),
        ("trian.epochs=3", "trian: unknown key; allowed: include, plugins, model"),
        ("rnak=3", "did you mean 'rank'?"),
        ("output.x=3", "output.x: found 'runs/a' (text) above 'x'"),
        ("method.lroa.alpha=3", "'lroa' is not there; allowed: lora, full, 0, 1; did you mean 'lora'?"),
        ("method.7=lora", "'7' is not there"),
        ("method.lora.alpa=3", "method.lora.alpa: unknown key; allowed: "),
        ("train.betas.2=0.5", "'2' is not there; allowed: 0, 1"),
        ("train.epochs=[", "override 'train.epochs=[': not valid YAML"),
        ("train.epochs=x", "train.epochs: found 'x' (text); allowed: a number above 0, or null"),
    ],
)
def test_wrong_overrides_are_refused(text, said):
    assert said in refused(LONG, text)


def test_method_that_stands_twice_is_addressed_by_number():
    twice = {**BASE, "method": [{"lora": {"targets": "q"}}, {"lora": {"targets": "v"}}]}
    assert "'lora' stands there more than once; allowed: lora, 0, 1" in refused(twice, "method.lora.alpha=3")
    assert load(twice, ["method.1.lora.alpha=3"]).method[1].options["alpha"] == 3.0
