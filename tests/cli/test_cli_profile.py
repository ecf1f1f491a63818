"""`peft profile` names what saves most, writes its files whole, and leaves the run folder alone."""

from __future__ import annotations

import json

import pytest

FILES = ["profile.json", "trace.json"]


@pytest.mark.usefixtures("few_validation_examples")
def test_json_names_the_largest_owners_and_adds_up(peft, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    done = peft("profile", recipe, "--steps", 1, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    for key in ("saved_by_kind", "saved_by_path"):
        sizes = [row["saved_bytes"] for row in told[key]]
        assert len(sizes) >= 5
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes) == told["saved_bytes"]
    assert "LlamaMLP (mlp)" in [row["label"] for row in told["saved_by_kind"][:5]]
    assert told["saved_by_path"][0]["name"].startswith("model.layers.")
    own = sum(row["forward_s"] + row["backward_s"] for row in told["time_by_path"])
    assert own == pytest.approx(told["phases_s"]["forward"] + told["phases_s"]["backward"])
    assert told["micro_batch"]["rows"] == 4
    # One folder is new, and no run is.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "profiles"])
    folder = tmp_path / "profiles" / recipe.stem
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "profile.json").read_text()) == told
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert any(event["name"] == "backward" for event in events)


@pytest.mark.usefixtures("few_validation_examples")
def test_quickstart_names_five_owners_and_an_earlier_profile_gives_way(peft, tmp_path):
    small = ("dataset.limit=32", "train.max_steps=1", "--steps", 1, "--output", tmp_path / "profile")
    for _ in range(2):
        done = peft("profile", "quickstart", *small)
        assert done.code == 0, done.err
    lines = done.out.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("saved") and "over all layers" in line]
    assert {line.split()[1] for line in lines[start + 2 : start + 7]} <= {"MB", "kB"}
    assert lines[start + 7].strip() == ""
    assert lines[start + 2].split()[4:6] == ["LlamaMLP", "(mlp)"]
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == FILES


def test_a_run_folder_is_refused_and_not_touched(peft, recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: bundled/tiny\n")
    done = peft("profile", recipe, "--output", run)
    assert done.code == 2
    assert str(run) in done.err
    assert "recipe.yaml" in done.err
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("override", ["rnak=3", "method=lroa", "rank=100000"])
def test_mistakes_are_those_of_other_commands_and_leave_no_folder(peft, recipe, tmp_path, override):
    one = peft("profile", recipe, override, "--output", tmp_path / "profile")
    other = peft("validate", recipe, override)
    assert (one.code, one.err) == (2, other.err)
    assert not (tmp_path / "profile").exists()


def test_steps_are_at_least_one(peft, recipe):
    assert peft("profile", recipe, "--steps", 0).code == 2
