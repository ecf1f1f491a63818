"""Adapters that are named by an id of the hub, in every place that takes a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file
from small_hub import SmallHub, commit, small_hub
from test_imported import CONFIGURATIONS, write_hub_peft

from peftkit.adaptation import describe_adapter
from peftkit.api import evaluate
from peftkit.interchange.published import published

FEW = ("dataset=bundled/e2e", "generation.max_new_tokens=3", "generation.num_beams=1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallHub]:
    """A hub with an adapter of a base that lies on it too, and one under a revision and in a subfolder."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    write_hub_peft(tmp_path / "one", CONFIGURATIONS["lora"]())
    write_hub_peft(tmp_path / "inside" / "best", CONFIGURATIONS["ia3"](), base=tmp_path / "base")
    for folder in (tmp_path / "one", tmp_path / "inside" / "best"):
        described = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        described["base_model_name_or_path"] = "org/base"
        (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    with small_hub(monkeypatch, tmp_path / "cache") as serving:
        serving.add("org/base", tmp_path / "base")
        serving.add("org/adapter", tmp_path / "one")
        serving.add("org/adapter", tmp_path / "inside", revision="v2")
        yield serving


def test_commands_take_an_id(hub: SmallHub, peft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = peft("eval", "org/adapter", *FEW, "--limit", 1, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["adapter"][0]["name"] == "lora"
    assert "Fetching" not in done.err
    assert not (tmp_path / "one" / "peftkit").exists()
    run = tmp_path / "kept" / "adapters" / "org--adapter" / commit("org/adapter", "main") / "top"
    assert (run / "eval").is_dir()
    # The second start asks nobody.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert peft("merge", "org/adapter", "--output", "merged").code == 0
    assert peft("export", "org/adapter", "--format", "hf-peft", "--output", "exported").code == 0
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "exported"))
    assert theirs.keys() == ours.keys()
    assert peft("report", "org/adapter", "--output", "report").code == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    done = peft("import", "org/adapter/best@v2", "--output", "second")
    assert done.code == 0, done.err
    assert describe_adapter(tmp_path / "second" / "adapter")["methods"][0]["name"] == "ia3"
    assert evaluate("org/adapter/best@v2", overrides=FEW[:2], limit=1)["adapter"][0]["name"] == "ia3"


def test_training_goes_on_from_an_id(hub: SmallHub, peft: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "next.yaml"
    train = "{max_steps: 1, max_length: 64, device: cpu}"
    recipe.write_text(f"{{model: org/base, adapter: org/adapter, dataset: bundled/e2e, train: {train}}}")
    done = peft("train", recipe, "--output", "next")
    assert done.code == 0, done.err
    assert describe_adapter(tmp_path / "next" / "adapter")["methods"][0]["name"] == "lora"


def test_what_cannot_be_had_is_told(hub: SmallHub, peft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("org/gated", "org/pickled"):
        hub.add(name, tmp_path / "one")
    (tmp_path / "one" / "adapter_model.safetensors").rename(tmp_path / "one" / "adapter_model.bin")
    hub.gated.add("org/gated")
    told = {
        "org/gated": "asks for consent to its terms",
        "org/nothing": "neither a folder nor a Hugging Face repository named org/nothing",
        "org/adapter@v3": "has no revision 'v3'",
        "org/adapter@v2": "name one, as org/adapter/best.",
        "org/adapter/none@v2": "holds no adapter of a library that is known",
        "org/pickled": "holds its tensors as adapter_model.bin only, a pickle",
        "org/base": "holds no adapter of a library that is known",
    }
    for name, message in told.items():
        done = peft("merge", name, "--output", "merged")
        assert (done.code, message in done.err) == (2, True), done.err
    assert not any(name.endswith(".bin") for name in hub.sent)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = peft("merge", "org/other", "--output", "merged")
    assert (done.code, "cannot be reached for it" in done.err) == (2, True), done.err


def test_a_cut_download_is_told_and_mended(hub: SmallHub, peft: Any) -> None:
    hub.cut.add("adapter_model.safetensors")
    done = peft("merge", "org/adapter", "--output", "merged")
    assert (done.code, "could not be downloaded whole" in done.err) == (2, True), done.err
    hub.cut.clear()
    assert peft("merge", "org/adapter", "--output", "merged").code == 0


def test_a_recipe_that_is_misspelt_is_still_a_recipe(hub: SmallHub, peft: Any) -> None:
    done = peft("eval", "e2e/lroa")
    assert (done.code, "Did you mean 'e2e/lora'?" in done.err) == (2, True), done.err


def test_paths_are_no_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/typo", "/org/adapter", "../org/adapter", "org/../adapter", "adapter", "org/adapter@", "a/b c"):
        assert published(Path(name)) is None
    found = published(Path("org/adapter/sub/folder@refs/pr/1"))
    assert found is not None
    assert (found.name, found.subfolder, found.revision) == ("org/adapter", "sub/folder", "refs/pr/1")
