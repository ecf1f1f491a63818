"""A run may come from someone else: the code of its model runs only where someone on this machine has agreed to it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_folders import section, write_model
from transformers import dynamic_module_utils

from peftkit import consent
from peftkit.errors import PeftkitError
from peftkit.models import trust
from peftkit.training import session
from peftkit_cli.main import main

CONFIGURATION = """\
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).write_text("run")
class MineConfig(LlamaConfig):
    model_type = "mine"
"""
MODELING = """\
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig
class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
NAMES = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}


class Place:
    """A model with code of its own that leaves a marker, a recipe that trusts it, and a run of that."""

    def __init__(self, folder: Path):
        self.folder, self.marker, self.run = folder, folder / "marker", folder / "run"
        self.model = write_model(folder / "model")
        config = json.loads((self.model / "config.json").read_text())
        config |= {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": NAMES}
        (self.model / "config.json").write_text(json.dumps(config))
        (self.model / "configuration_mine.py").write_text(CONFIGURATION.format(marker=str(self.marker)))
        (self.model / "modeling_mine.py").write_text(MODELING)
        data = folder / "data"
        data.mkdir()
        for split in ("train", "test"):
            (data / f"{split}.jsonl").write_text('{"prompt": "ab", "completion": "c"}\n' * 8)
        recipe = {
            "model": {"name": str(self.model), "trust_remote_code": True},
            "method": "lora",
            "dataset": {"name": "jsonl", "path": str(data)},
            "generation": {"max_new_tokens": 2},
            "train": {"max_steps": 2, "batch_examples": 2, "device": "cpu", "save_every": 1},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def peft(self, *words: object) -> int:
        """Run a command as a process that has loaded no code of the model's yet."""
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]
        consent._given.clear()
        self.marker.unlink(missing_ok=True)
        return main([str(word) for word in words])

    @property
    def ran(self) -> bool:
        return self.marker.exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("trusted"))
    with pytest.MonkeyPatch.context() as patch:
        confine(patch, place.folder, place.folder)
        assert place.peft("train", place.folder / "recipe.yaml", "--output", place.run) == 0
        assert place.ran
        assert place.peft("generate", place.run, "ab") == 0, "this machine made the run"
        assert place.ran
    return place


def confine(patch: pytest.MonkeyPatch, folder: Path, copies: Path) -> None:
    """Keep what is remembered in a folder, and copies of code in another, which is the same for all of this process."""
    patch.setenv("PEFTKIT_STATE", str(folder / "state"))
    patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(copies / "modules"))
    patch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture
def elsewhere(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The run as a machine finds it that did not make it."""
    confine(monkeypatch, tmp_path, made.folder)
    return made


OPENING: dict[str, Any] = {
    "generate": ["generate", "RUN", "ab"],
    "eval": ["eval", "RUN", "--limit", "1"],
    "eval --base": ["eval", "RUN", "--limit", "1", "--base"],
    "merge": ["merge", "RUN", "--output", "OUT"],
    "export": ["export", "RUN", "--format", "hf-peft", "--output", "OUT"],
    "combine": ["combine", "RUN", "RUN", "--how", "average", "--output", "OUT"],
    "combine adapters": ["combine", "RUN/adapter", "RUN/adapter", "--how", "average", "--output", "OUT"],
    "resume": ["train", "RECIPE", "--output", "RUN", "--resume"],
}


def words(name: str, place: Place, tmp_path: Path) -> list[str]:
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(place.run, run)
        if name == "resume":
            (run / "summary.json").unlink()
    named = {"RUN": str(run), "OUT": str(tmp_path / "out"), "RECIPE": str(place.folder / "recipe.yaml")}
    return [named.get(word, word.replace("RUN", str(run))) for word in OPENING[name]]


@pytest.mark.parametrize("name", OPENING)
def test_the_code_of_another_machines_run_is_asked_for(
    name: str, elsewhere: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = words(name, elsewhere, tmp_path)
    assert elsewhere.peft(*command) == 2
    assert not elsewhere.ran
    told = capsys.readouterr().err
    for word in (
        "recipe.yaml says model.trust_remote_code",
        "configuration_mine.py",
        str(elsewhere.model),
        "--trust-remote",
    ):
        assert word in told
    assert not (tmp_path / "out").exists()
    assert elsewhere.peft(*command, "--trust-remote-code") == 0, capsys.readouterr().err
    assert elsewhere.ran


def test_consent_lasts_until_the_code_is_another(elsewhere: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = words("generate", elsewhere, tmp_path)
    assert elsewhere.peft(*command, "--trust-remote-code") == 0
    assert elsewhere.peft(*command) == 0
    assert elsewhere.ran
    path = elsewhere.model / "modeling_mine.py"
    path.write_text(f"{MODELING}\nCHANGED = True\n")
    try:
        assert elsewhere.peft(*command) == 2
        assert not elsewhere.ran
    finally:
        path.write_text(MODELING)
    (elsewhere.model / "more.py").write_text("")
    try:
        assert elsewhere.peft(*command) == 2
    finally:
        (elsewhere.model / "more.py").unlink()
    assert elsewhere.peft(*command) == 0


def test_a_report_runs_no_code(elsewhere: Place, tmp_path: Path):
    run = Path(words("eval", elsewhere, tmp_path)[1])
    assert elsewhere.peft("eval", run, "--limit", "1", "--trust-remote-code") == 0
    assert elsewhere.peft("report", run, "--output", tmp_path / "report") == 0
    assert not elsewhere.ran


def test_consent_that_cannot_be_kept_holds_for_the_command(
    elsewhere: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTKIT_STATE", str(tmp_path / "file" / "state"))
    command = words("generate", elsewhere, tmp_path)
    assert elsewhere.peft(*command, "--trust-remote-code") == 0
    assert "is not kept" in capsys.readouterr().err
    assert elsewhere.peft(*command) == 2


def test_a_model_without_code_needs_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    confine(monkeypatch, tmp_path, tmp_path)
    model = write_model(tmp_path / "model")
    trust.check(section(model, trust_remote_code=True), tmp_path)
    (model / "any.py").write_text("")
    trust.check(section(model), tmp_path)
    with pytest.raises(PeftkitError, match=r"any\.py"):
        trust.check(section(model, trust_remote_code=True), tmp_path)
    (model / "any.py").unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["x.X", None]}}))
    with pytest.raises(PeftkitError, match="trust_remote_code"):
        trust.check(section(model, trust_remote_code=True), tmp_path)
