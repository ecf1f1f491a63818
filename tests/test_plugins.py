"""Entries from outside of the package: files that a recipe names, and modules that installed packages name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftkit import plugins
from peftkit.errors import PeftkitError
from peftkit.loggers import LOGGERS
from peftkit.method import METHODS
from peftkit.metrics import METRICS
from peftkit.recipe import load
from peftkit.tasks import TASKS
from peftkit_cli.main import main

SCALE = '''\
"""Output scale multiplies each output of frozen linear layers by a trainable factor."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.method import Targeted
from peftkit.ports.linear import Delta, LinearAdapter


@dataclass(frozen=True, kw_only=True)
class OutputScale(Targeted, name="{name}"):
    """(1 + f) W x with f [out], zero at the start."""

    start: float = 0.0

    def build(self, site: Site) -> LinearAdapter:
        return Scale(site, self.start)


class Scale(Delta):
    def __init__(self, site: Site, start: float):
        super().__init__(site)
        self.f = nn.Parameter(torch.full((site.outputs,), start))

    def delta(self, weight: Tensor) -> Tensor:
        return self.f[:, None] * weight
'''
OTHERS = """\
from dataclasses import dataclass
from peftkit.loggers import Logger
from peftkit.metrics import metric
from peftkit.tasks import TASKS
from peftkit.tasks.text import Documents

@dataclass(frozen=True, kw_only=True)
class Mine(Logger, name="own-logger"):
    pass

@metric("own-metric", "OWN")
def own(predictions, references):
    return {"OWN": float(len(predictions))}

class Novels(Documents):
    name = "novels"

TASKS.add("novels", Novels())
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """Keep consent in a folder of the test, and forget afterwards what its files registered."""
    monkeypatch.setenv("PEFTKIT_STATE", str(tmp_path / "state"))
    before = dict(plugins._ran)
    yield tmp_path / "state"
    for path in set(plugins._ran) - set(before):
        plugins.forget(path)


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(text)
    return folder / name


def recipe_of(folder: Path, plugin: Path, method: str = "output_scale") -> Path:
    keys = {
        "plugins": [str(plugin)],
        "model": "bundled/tiny",
        "method": method,
        "dataset": "bundled/e2e",
        "train": {"max_steps": 2, "learning_rate": 0.01, "batch_examples": 2, "device": "cpu"},
        "eval": {"limit": 2},
        "generation": {"max_new_tokens": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return folder / "recipe.yaml"


def command(*words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `peft` in a process of its own, with a folder in front of the import path."""
    places = [str(path)] if path else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")])}
    run = [sys.executable, "-m", "peftkit_cli", *map(str, words)]
    return subprocess.run(run, capture_output=True, text=True, env=environment)


def test_a_method_of_a_file_is_validated_trained_scored_and_merged(tmp_path, state):
    file = write(tmp_path, SCALE.format(name="output_scale"))
    recipe = recipe_of(tmp_path, file)
    done = command("validate", recipe)
    assert "output_scale" in done.stdout, done.stderr
    assert main(["train", str(recipe), "--output", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["plugins"] == [str(file)]
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["merge", str(tmp_path / "run"), "--output", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_every_kind_can_be_registered(tmp_path):
    plugins.run(write(tmp_path, OTHERS))
    assert "own-logger" in LOGGERS
    assert "own-metric" in METRICS
    assert "novels" in TASKS


def test_a_run_of_someone_else_runs_no_plugin_unasked(tmp_path, state, capsys):
    marker = tmp_path / "marker"
    text = SCALE.format(name="output_scale") + f"\nfrom pathlib import Path\nPath({str(marker)!r}).touch()\n"
    recipe = recipe_of(tmp_path, write(tmp_path, text))
    run = tmp_path / "run"
    assert command("train", recipe, "--output", run).returncode == 0
    assert marker.exists()
    for consent in (state / "trusted").iterdir():
        consent.unlink()
    marker.unlink()
    for words in (["eval", run], ["merge", run, "--output", tmp_path / "merged"]):
        refused = command(*words)
        assert refused.returncode == 2
        assert not marker.exists()
        assert "nobody on this machine has agreed" in refused.stderr
        assert "--trust-remote-code" in refused.stderr
    assert command("eval", run, "--trust-remote-code").returncode == 0
    assert marker.exists()
    assert command("eval", run).returncode == 0


def test_a_changed_plugin_wants_consent_anew(tmp_path, state):
    file = write(tmp_path, SCALE.format(name="output_scale"))
    plugins.run(file)
    assert plugins.run(file, agreed=False)
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(PeftkitError, match="nobody on this machine has agreed to run it as it is now"):
        plugins.run(file, agreed=False)


def test_a_file_that_changed_replaces_what_it_was(tmp_path):
    file = write(tmp_path, SCALE.format(name="output_scale"))
    plugins.run(file)
    first = METHODS["output_scale"]
    plugins.run(file)
    assert METHODS["output_scale"] is first
    write(tmp_path, SCALE.format(name="other_scale"))
    plugins.run(file)
    assert "output_scale" not in METHODS
    assert "other_scale" in METHODS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SCALE.format(name="output_scale") + "\nraise RuntimeError('no')\n", r"mine.py:31 ends with RuntimeError: no"),
        ("import nothing_of_this_name\n", "mine.py:1 ends with ModuleNotFoundError"),
        ("a b\n", "mine.py:1 ends with SyntaxError"),
        (SCALE.format(name="lora"), "ends with ValueError: two methods are named 'lora'"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_fails_is_told_with_its_places_and_registers_nothing(tmp_path, text, said):
    names = METHODS.names()
    file = tmp_path / "mine.py" if text is None else write(tmp_path, text)
    recipe = recipe_of(tmp_path, file)
    with pytest.raises(PeftkitError, match=rf"recipe\.yaml:\d+: plugins\.0: .*{said}"):
        load(recipe)
    assert METHODS.names() == names


def test_options_of_a_plugin_are_checked_at_their_line(tmp_path):
    recipe = recipe_of(tmp_path, write(tmp_path, SCALE.format(name="output_scale")))
    with pytest.raises(PeftkitError, match=r"unknown key; allowed: .*start.*did you mean 'start'"):
        load(recipe, ["method.output_scale.strat=1"])


def installed(folder: Path, text: str) -> Path:
    """Lay out an installed package whose entry point names a module with a method."""
    information = folder / "own_methods-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: own-methods\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[peftkit.plugins]\nown = own_methods\n")
    (folder / "own_methods.py").write_text(text)
    return folder


def test_methods_of_installed_packages_are_there(tmp_path):
    place = installed(tmp_path / "site", SCALE.format(name="output_scale"))
    done = command("list", "methods", path=place)
    assert done.returncode == 0
    assert "output_scale" in done.stdout
    recipe = recipe_of(tmp_path, write(tmp_path, ""))
    done = command("validate", recipe, path=place)
    assert done.returncode == 0, done.stderr


def test_an_installed_package_that_fails_is_told_and_stops_nothing(tmp_path):
    done = command("list", "methods", path=installed(tmp_path / "site", "raise RuntimeError('broken')\n"))
    assert done.returncode == 0
    assert "lora" in done.stdout
    assert "the plugin 'own' of the package own-methods cannot be imported" in done.stderr
