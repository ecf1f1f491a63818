"""Loading a recipe: what its keys become, and what is said of every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.recipe import load

FIVE = """\
model: bundled/tiny
method: lora
rank: 8
quantization: none
dataset: e2e
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def refusal(source, *overrides: str) -> list[str]:
    with pytest.raises(PeftkitError) as caught:
        load(source, overrides)
    return str(caught.value).splitlines()


def test_five_lines_are_a_whole_recipe(write):
    recipe = load(write(FIVE))
    assert recipe.model.name == "bundled/tiny"
    assert [choice.name for choice in recipe.method] == ["lora"]
    assert recipe.method[0].options["rank"] == 8
    assert recipe.quantization.format == "none"
    assert recipe.dataset.name == "e2e"
    assert (recipe.train.epochs, recipe.train.max_steps, recipe.train.batch_tokens) == (3.0, None, 4096)
    assert [method.name for method in recipe.methods()] == ["lora"]


def test_resolved_recipe_reloads_to_an_equal_one(write):
    text = (
        FIVE
        + "train: {betas: [0.8, 9e-1], max_steps: 7}\n"
        + "generation: {stop: ['1e5', '2024-01-01', \"\\n\", 'é\U0001f600']}\n"
    )
    recipe = load(write(text))
    assert recipe.train.betas == (0.8, 0.9)
    again = load(write(recipe.to_yaml(), "resolved.yaml"))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert "include" not in recipe.to_yaml()


@pytest.mark.parametrize("figure", ["1e-4", "1E-4", "1.e-4", ".1e-3", "1.0e-4", "0.0001", "+1e-4"])
def test_numbers_with_an_exponent_are_numbers(write, figure):
    path = write(FIVE + f"train: {{learning_rate: {figure}}}\n")
    assert load(path).train.learning_rate == 1e-4
    assert load(write(FIVE), [f"train.learning_rate={figure}"]).train.learning_rate == 1e-4
    assert load(write(FIVE), [f"method.lora.alpha={figure}"]).method[0].options["alpha"] == 1e-4


def test_quoted_number_is_text(write):
    assert refusal(write(FIVE + "train:\n  learning_rate: '1e-4'\n"))[0].endswith(
        "recipe.yaml:7: train.learning_rate: found '1e-4' (text); allowed: a number above 0 and up to 1000, or null"
    )


def test_every_mistake_is_told_with_its_line(write):
    path = write(
        "model: bundled/tiny\nmethod:\n  lora:\n    alfa: 16\n    dropout: 2\ndataset: e2ee\ntrain:\n  epoch: 3\n"
        "  schedule: cosin\n  betas: [0.9, 1.0]\n  clip: .nan\n  max_steps: 1.5\n"
        "learning_rate: 1\nquantization: nonne\n"
    )
    told = refusal(path)
    starts = [line.removeprefix(f"{path}:").split(": ")[:2] for line in told]
    assert starts == [
        ["4", "method.lora.alfa"],
        ["5", "method.lora.dropout"],
        ["6", "dataset.name"],
        ["8", "train.epoch"],
        ["9", "train.schedule"],
        ["10", "train.betas.1"],
        ["11", "train.clip"],
        ["12", "train.max_steps"],
        ["13", "learning_rate"],
        ["14", "quantization.format"],
    ]
    for line, guess in zip(told, ["alpha", None, "e2e", "epochs", "cosine", *[None] * 4, "none"], strict=True):
        assert guess is None or f"did you mean '{guess}'?" in line
    assert "did you mean 'train.learning_rate'" in told[8]
    assert "allowed: a number from 0 and below 1" in told[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "found an empty file"),
        ("# only a comment\n", "found an empty file"),
        ("- a\n- b\n", "found a list; allowed: a mapping"),
        ("just text\n", "found 'just text' (text); allowed: a mapping"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: not valid YAML"),
        ("model: [a\nmethod: lora\n", "recipe.yaml:2: not valid YAML"),
        ("model: a\nmethod: b\nmodel: c\n", "recipe.yaml:3: model: written twice, first at line 1"),
        ("model:\n  name: a\n  name: b\n", "recipe.yaml:3: model.name: written twice, first at line 2"),
        ("model: !!python/object/apply:os.system [ls]\n", "recipe.yaml:1: model: found the tag"),
        ("model: \x00\n", "recipe.yaml:1: not a text"),
        ('model: "\\0"\n', "recipe.yaml:1: model: found text with a NUL"),
        ('model: "\\ud800"\n', "recipe.yaml:1: model: found text with a NUL or half a character"),
        (b"model: a\nmethod: \xff\n", "recipe.yaml:2: byte 17 is not UTF-8"),
        ("[" * 1500, "nested too deeply"),
        ("a: " * 1, "unknown key"),
        ("model: &a [*a]\n", "allowed: 32 levels"),
        ("x" * 300_000, "found more than 262144 bytes"),
        ("? [a, b]\n: 1\n", "found a list or a mapping as a key"),
        ("train: {seed: " + "9" * 5000 + "}\n", "no valid number"),
        ("train: {seed: 0x" + "f" * 5000 + "}\n", "a whole number of more than 30 digits"),
        ("train: {eps: 1e999}\n", "train.eps: found inf; allowed: a finite number"),
    ],
)
def test_what_is_no_recipe_is_refused(write, text, said):
    assert said in "\n".join(refusal(write(text)))


def test_aliases_that_grow_without_end_are_refused(write):
    levels = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases written out" in refusal(write("\n".join(levels)))[0]


def test_anchors_and_merge_keys_work_as_in_yaml(write):
    text = FIVE.replace("model: bundled/tiny", "model: &m {<<: [{seed: 3}, {seed: 4, dtype: float32}], name: x}")
    recipe = load(write(text))
    assert (recipe.model.name, recipe.model.seed, recipe.model.dtype) == ("x", 3, "float32")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            "train: {batch_tokens: 5, batch_examples: 5}",
            "train: found batch_tokens 5 and batch_examples 5; allowed: one",
        ),
        ("train: {warmup: 1.5}", "train: found warmup 1.5; allowed: a fraction below 1, or a whole number of steps"),
        ("train: {epochs: 0}", "train.epochs: found 0 (a whole number); allowed: a number above 0, or null"),
        ("train: {max_steps: true}", "train.max_steps: found true; allowed: a whole number from 1, or null"),
        ("train: {betas: [0.9]}", "train.betas.1: missing; allowed: a list of 2, each a number from 0 and below 1"),
        ("train: {precision: fp8}", "train.precision: found 'fp8' (text); allowed: auto, fp32, bf16, fp16"),
        ("train: {tensorboard: 'yes'}", "train.tensorboard: unknown key; allowed: epochs"),
        ("train: {log: wandb}", "train.log: found 'wandb' (text); allowed: a list"),
        ("train: {log: [wanbd]}", "train.log: found 'wanbd', which is no logger; allowed: "),
        ("train: {log: [wandb, {wandb: {}}]}", "train.log: found 'wandb' twice; allowed: each logger once"),
        ("train: {log: [{wandb: {projekt: x}}]}", "train.log.wandb.projekt: unknown key; allowed: project"),
        ("train: {log: [{wandb: {project: 3}}]}", "train.log.wandb.project: found 3 (a whole number); allowed: text"),
        ("train: 3", "train: found 3 (a whole number); allowed: a mapping with epochs"),
        ("generation: {top_p: 0.0}", "generation.top_p: found 0.0 (a number); allowed: a number above 0 and up to 1"),
        ("generation: {stop: ['']}", "generation.stop.0: found '' (text)"),
        (
            "generation: {do_sample: true, num_beams: 4}",
            "generation: found do_sample true and num_beams 4; allowed: one of them",
        ),
        (
            "generation: {early_stopping: maybe}",
            "generation.early_stopping: found 'maybe' (text); allowed: false, true, never",
        ),
        ("eval: {batch_size: 0}", "eval.batch_size: found 0 (a whole number); allowed: a whole number from 1"),
        ("output: ''", "output: found '' (text); allowed: text, or null"),
        ("evl: {}", "evl: unknown key; allowed: include, plugins, model, method"),
    ],
)
def test_values_out_of_bounds_are_refused(write, section, said):
    told = refusal(write(FIVE + section + "\n"))
    assert len(told) == 1
    assert f"recipe.yaml:6: {said}" in told[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model: {}", "model: found neither 'name' nor 'init'"),
        ("model: {name: a, init: {architecture: llama}}", "model: found both 'name' and 'init'"),
        ("model: {init: {hidden_size: 32}}", "model: found no 'architecture' in init"),
        ("model: 5", "model: found 5 (a whole number); allowed: a name, or a mapping with name, init"),
        ("model:", "model: missing; allowed: a name, or a mapping with name"),
    ],
)
def test_model_has_one_origin(write, line, said):
    assert said in refusal(write(FIVE.replace("model: bundled/tiny", line)))[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "method: lroa",
            f"method: found 'lroa', which is no method; allowed: {', '.join(METHODS.names())}; did you mean 'lora'?",
        ),
        ("method: []", "method: found an empty list"),
        ("method: 3", "method: found 3 (a whole number); allowed: a method's name"),
        ("method: {lora: {}, full: {}}", "method: found a mapping of 2 keys"),
        ("method: {lora: 3}", "method: found 3 (a whole number) as the options of 'lora'"),
        ("method: [lora, [full]]", "method: found a list; allowed: a method's name"),
        ("method: full", "rank: found 8, and no chosen method has a rank"),
        ("method: {lora: {rank: 4}}", "rank: found 8, and 'lora' sets its own: write method.lora.rank"),
        ("method: {lora: {dropout: -0.1, rank: x}}", "method.lora.dropout: "),
    ],
)
def test_methods_are_checked(write, line, said):
    text = FIVE.replace("method: lora", line)
    told = refusal(write(text))
    assert any(said in line for line in told)
    assert all("recipe.yaml:2: " in line or "recipe.yaml:3: " in line for line in told)


def test_rank_reaches_only_methods_that_do_not_set_theirs(write):
    recipe = load(
        write(FIVE.replace("method: lora", "method: [{lora: {rank: 4, targets: q}}, {lora: {targets: v}}, full]"))
    )
    assert [choice.options.get("rank") for choice in recipe.method] == [4, 8, None]
    assert recipe.rank is None


def test_defaults_that_depend_on_another_key(write):
    recipe = load(write(FIVE + "train: {max_steps: 10, batch_examples: 4}\n"))
    assert (recipe.train.epochs, recipe.train.batch_tokens) == (None, None)


def test_home_is_expanded_and_other_paths_are_kept(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load(write(FIVE + "output: ~/runs/a\n"), ["dataset.path=../data"])
    assert recipe.output == "/home/somebody/runs/a"
    assert recipe.dataset.path == "../data"


@pytest.mark.parametrize(
    ("section", "said"),
    [("{name: e2e, source: path}", "without a path"), ("{name: e2e, path: x, source: hub}", "a path and source 'hub'")],
)
def test_source_and_path_agree(write, section, said):
    assert said in refusal(write(FIVE.replace("dataset: e2e", f"dataset: {section}")))[0]


def test_mapping_is_loaded_like_a_file(write):
    keys = {"model": "bundled/tiny", "method": ["lora"], "rank": 8, "dataset": {"name": "e2e", "path": Path("a/b")}}
    assert load(keys) == load(write(FIVE), ["dataset.path=a/b"])
    assert refusal({**keys, "rank": 10**5000}) == [
        "recipe: rank: found a whole number of more than 30 digits; allowed: at most 30"
    ]
    assert refusal({**keys, "rank": object()})[0].startswith("recipe: rank: found a object")
    assert refusal({**keys, "train": {"clip": float("inf")}}) == [
        "recipe: train.clip: found inf; allowed: a finite number"
    ]


def test_missing_files_are_refused(tmp_path):
    assert "there is no recipe" in refusal(tmp_path / "nothing.yaml")[0]
    assert "is a folder" in refusal(tmp_path)[0]
    assert "there is no recipe" in refusal("a\0b")[0]
    assert "recipe" in refusal("a" * 5000)[0]


def test_many_mistakes_are_counted(write):
    told = refusal(write(FIVE + "".join(f"unknown{i}: 1\n" for i in range(50))))
    assert len(told) == 21
    assert told[-1] == "and 30 more"


def test_trained_adapters_are_checked_where_they_stand(write, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text(FIVE)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "adapter.json").write_text("{}")
    lines = ["adapters:", "  a.b: nowhere", f"  begun: {tmp_path}/begun", f"  odd: {tmp_path}/odd", "  four: 4"]
    path = write(FIVE + "\n".join(lines))
    name, gone, begun, odd, four = refusal(path)
    assert name.startswith(f"{path}:7: adapters.a.b: found the name 'a.b'; allowed: letters, digits")
    assert gone.startswith(f"{path}:7: adapters.a.b: nowhere is neither a run folder nor an adapter folder")
    assert begun.startswith(f"{path}:8: adapters.begun: the run {tmp_path}/begun has no adapter: its training has not")
    assert odd.startswith(f"{path}:9: adapters.odd: {tmp_path}/odd/adapter.json does not describe an adapter")
    assert four == f"{path}:10: adapters.four: found 4 (a whole number); allowed: a mapping of keys"
    (long,) = refusal(write(FIVE + f"adapters: {{a: {'x' * 300}}}"))
    assert "adapters.a: cannot read" in long
    (told,) = refusal(write(FIVE + "adapters: [runs/a]"))
    assert told.endswith("adapters: found a list; allowed: a mapping of keys")


def test_trained_adapters_are_kept_as_written(write, tmp_path):
    description = {"format": 1, "methods": [], "base": {"name": "x"}}
    (tmp_path / "a" / "adapter").mkdir(parents=True)
    (tmp_path / "a" / "adapter" / "adapter.json").write_text(json.dumps(description))
    recipe = load(write(FIVE + f"adapters: {{one: {tmp_path}/a}}"), [f"adapters.other={tmp_path}/a/adapter"])
    assert recipe.adapters == {"one": f"{tmp_path}/a", "other": f"{tmp_path}/a/adapter"}
    assert load(write(recipe.to_yaml())) == recipe
    assert "adapters" not in load(write(FIVE)).to_yaml()


def test_every_yaml_has_one_reader():
    """PyYAML's own loaders follow aliases without end, recurse without end and raise for a date that is none."""
    root = Path(__file__).resolve().parents[2]
    # The table of layouts comes with the package, and stands below recipes.
    own = {"core/peftkit/recipe/tree.py", "core/peftkit/families/decoder.py"}
    places = [path for name in ("core", "cli") for path in (root / name).rglob("*.py")]
    using = {
        str(path.relative_to(root))
        for path in places
        if "yaml.safe_load" in path.read_text() or "yaml.load" in path.read_text()
    }
    assert using <= own
