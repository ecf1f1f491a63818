"""`peft suggest`: the first suggestion that fits by the estimate, with reasons, as a recipe that loads."""

from __future__ import annotations

import pytest

from peftkit import suggestion
from peftkit.plan import plan
from peftkit.recipe import load
from peftkit_cli.main import main


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"prompt": "name {n}", "completion": "It is {n}."}}\n' for n in range(8)))
    return path


def test_the_recipe_loads_and_its_memory_is_the_estimate_of_that_recipe(data, tmp_path, capsys):
    assert main(["suggest", "--model", "bundled/tiny", "--data", str(data), "--memory", "64GB"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "ours.yaml").write_text(text)
    recipe = load(tmp_path / "ours.yaml")
    assert (recipe.quantization.format, recipe.train.memory, recipe.dataset.path) == ("none", "64GB", str(data))
    trained = plan(recipe).trainable
    assert f"{trained:,} parameters" in text
    assert "# Frozen weights stay as they are" in text
    assert "Examples: 8; steps: " in text


def test_less_memory_takes_packed_weights_and_too_little_is_refused(data, monkeypatch):
    class Memory:
        tokens, memory_plan = 9, "as the recipe says"

        def __init__(self, peak):
            self.peak = peak

    class Planned:
        trainable, total, rates, examples, steps, epochs = 1, 2, [], 8, 3, 3.0

        def __init__(self, recipe):
            self.memory = Memory({"none": 9e9, "int8": 6e9, "nf4": 4e9}[recipe.quantization.format])

    monkeypatch.setattr(suggestion, "plan", Planned)
    found = [suggestion.suggest("bundled/tiny", str(data), size) for size in ("9GB", "8GB", "4GB")]
    assert [each.keys["quantization"] for each in found] == ["none", "int8", "nf4"]
    with pytest.raises(suggestion.PeftkitError, match=r"fits into 3GB: the least estimate is 4.00 GB"):
        suggestion.suggest("bundled/tiny", str(data), "3GB")


@pytest.mark.parametrize(
    ("model", "file", "memory", "said"),
    [
        ("bundled/tiny", "mine.jsonl", "much", "--memory: found 'much'"),
        ("bundled/tiny", "mine.jsonl", "auto", "--memory: found 'auto'"),
        ("bundled/tiny", "nowhere.jsonl", "64GB", "nowhere.jsonl"),
        ("bundled/tinny", "mine.jsonl", "64GB", "tinny"),
    ],
)
def test_bad_input_is_told(data, model, file, memory, said, capsys):
    arguments = ["--model", model, "--data", str(data.parent / file), "--memory", memory]
    assert main(["suggest", *arguments]) == 2
    assert said in capsys.readouterr().err
