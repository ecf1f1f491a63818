"""Standard streams that are closed, full or without a reader: every command ends with an exit code that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from draw import marked, thorough
from safetensors.torch import save_file

from peftkit.models.load import load as load_model
from peftkit.recipe import ModelSection
from peftkit.training import checkpoint
from peftkit_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
USES: dict[str, str] = {
    "train": "train small.yaml --output out",
    "compare": "compare small.yaml --methods lora --seeds 1 --output out",
    "eval": "eval run --limit 2",
    "report": "report run --output out",
    "generate": "generate run hello",
    "merge": "merge run --output out",
    "export": "export run --format hf-peft --output out",
    "combine": "combine run run --how average --output out",
    "import": "import theirs --output out model=bundled/tiny",
    "quantize": "quantize bundled/tiny --format int8 --output out",
    "validate": "validate small.yaml",
    "estimate": "estimate small.yaml",
    "profile": "profile small.yaml --steps 1 --output out",
    "data": "data show small.yaml",
    "modules": "modules bundled/tiny --targets q",
    "check": "check method lora",
    "doctor": "doctor",
    "convert-config": "convert-config theirs.yaml --output out",
    "suggest": "suggest --model bundled/tiny --data mine.jsonl --memory 64GB",
    "new": "new --method lora --output out.yaml",
    "list": "list models",
    "score": "score e2e --predictions predictions.json --references references.json",
}
"""A use of every command that says something."""
KINDS: dict[str, str] = {
    "closed": '"$@" >&-',
    "full": '"$@" >/dev/full',
    "left": '"$@" | true; exit ${PIPESTATUS[0]}',
    "no input": '"$@" <&-',
    "no messages": '"$@" 2>&-',
    "full messages": '"$@" 2>/dev/full',
}
"""What a shell makes of the streams of a command."""
Shell = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and files to score."""
    folder = tmp_path_factory.mktemp("streams")
    chosen = {
        "model": "bundled/tiny",
        "method": {"lora": {"rank": 2}},
        "dataset": {"name": "bundled/e2e", "fraction": 0.02},
        "train": {"max_steps": 3, "batch_examples": 2, "device": "cpu", "max_length": 32},
        "generation": {"max_new_tokens": 2},
        "eval": {"limit": 2},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
    (folder / "predictions.json").write_text(json.dumps(["a b"]), encoding="utf-8")
    (folder / "references.json").write_text(json.dumps([["a b"]]), encoding="utf-8")
    (folder / "theirs.yaml").write_text("base_model: bundled/tiny\nadapter: lora\nlora_r: 4\n", encoding="utf-8")
    (folder / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    (folder / "theirs").mkdir()
    config = {"delta_type": "lora", "backbone_hash": "", "lora_r": 1, "lora_alpha": 1}
    (folder / "theirs" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    width, path = (
        load_model(ModelSection(name="bundled/tiny")).model.config.hidden_size,
        "model.layers.0.self_attn.q_proj",
    )
    pair = {f"{path}.lora.lora_A": torch.ones(1, width), f"{path}.lora.lora_B": torch.ones(width, 1)}
    save_file(pair, folder / "theirs" / "pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """The run of the recipe that nothing disturbed, evaluated."""
    shell = in_shell(place)
    assert shell("train small.yaml --output run", "no input").returncode == 0
    assert shell("eval run", "no input").returncode == 0
    return place / "run"


def in_shell(folder: Path) -> Shell:
    """Return what runs `peft` in a folder under a line of a shell that stands for a kind of streams."""

    def run(words: str, kind: str, *more: str, line: str = "") -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(str(ROOT / name) for name in ("core", "cli"))
        command = [sys.executable, "-m", "peftkit_cli", *words.split(), *more]
        return subprocess.run(
            ["bash", "-c", line or KINDS[kind], "bash", *command],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def shell(place: Path, tmp_path: Path) -> Shell:
    """Run `peft` in a folder of the test's own, with what `place` holds."""
    for name in ("small.yaml", "predictions.json", "references.json", "theirs", "theirs.yaml", "mine.jsonl", "run"):
        (tmp_path / name).symlink_to(place / name)
    return in_shell(tmp_path)


def test_every_command_is_in_the_table():
    assert list(USES) == list(COMMANDS)


CASES = [(command, kind) for command in USES for kind in KINDS]
HELD = [*(("list", kind) for kind in KINDS), ("train", "left")]


@pytest.mark.parametrize(("command", "kind"), marked(CASES, HELD))
def test_streams_decide_the_exit_code_and_never_bring_a_traceback(
    command: str, kind: str, shell: Shell, tmp_path: Path, request: pytest.FixtureRequest
):
    if " run" in USES[command]:
        request.getfixturevalue("made")
    done = shell(USES[command], kind)
    for word in ("Traceback", "bug", "Exception ignored"):
        assert word not in done.stderr
    if kind in ("no input", "no messages", "full messages"):
        assert done.returncode == 0, done
        assert done.stdout
        return
    assert done.returncode == {"closed": 2, "full": 2, "left": 141}[kind], done
    if kind == "closed":
        assert done.stderr.startswith("peft: standard output is closed")
        assert not os.path.lexists(tmp_path / "out")
    elif kind == "full":
        assert "standard output cannot be written: No space left on device" in done.stderr
    elif command not in ("train", "compare"):
        assert not [line for line in done.stderr.splitlines() if not line.startswith("peft: note: ")]
    if command == "train" and kind != "closed":
        assert "Continue with the same command and --resume" in done.stderr
        assert checkpoint.listed(tmp_path / "out" / "checkpoints")


@pytest.mark.thorough
def test_a_run_whose_reader_left_goes_on_as_if_nothing_had_been(shell: Shell, tmp_path: Path, made: Path):
    done = shell(USES["train"], "", line='"$@" | head -n 2; exit ${PIPESTATUS[0]}')
    assert done.returncode == 141
    assert shell(f"{USES['train']} --resume", "no input").returncode == 0
    tensors = Path("adapter/adapter.safetensors")
    assert (tmp_path / "out" / tensors).read_bytes() == (made / tensors).read_bytes()


@pytest.mark.thorough
def test_runs_that_are_trained_together_write_checkpoints_when_their_reader_leaves(shell: Shell, tmp_path: Path):
    done = shell("train small.yaml --output out", "left", "sweep={rank: [2, 4]}")
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert [len(checkpoint.listed(tmp_path / "out" / name / "checkpoints")) for name in ("rank-2", "rank-4")] == [1, 1]


@pytest.mark.parametrize("arguments", ["--help", "--version", thorough("train --help")])
@pytest.mark.parametrize("kind", ["closed", "full", "left"])
def test_help_is_an_output_as_any_other(arguments: str, kind: str, shell: Shell):
    done = shell(arguments, kind)
    assert done.returncode == (141 if kind == "left" else 2)
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == (kind != "left")


def test_a_mistake_is_told_by_the_exit_code_where_nothing_can_be_said(shell: Shell):
    for line in ('"$@" 2>&-', '"$@" 2>/dev/full', '"$@" >&- 2>&-'):
        assert shell("list method", "", line=line).returncode == 2


def test_input_that_is_no_text_or_not_there_is_refused(shell: Shell):
    for line, told in {
        '"$@" <&-': "standard input is closed",
        '"$@" 0> written': "standard input cannot be read: Bad file descriptor",
        "printf 'a\\xff' | \"$@\"": "standard input is not UTF-8 text (byte 1)",
        "printf 'a\\xff' | LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 \"$@\"": "standard input is not ",
    }.items():
        done = shell("generate run -", "", line=line)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith(f"peft: {told}"), done.stderr


def test_an_argument_that_is_no_text_is_refused(shell: Shell):
    done = shell("generate run", "no input", os.fsdecode(b"a\xff"))
    assert done.returncode == 2
    assert done.stderr == "peft: the argument number 3, 'a\\xff', is not UTF-8 text.\n"


def test_what_an_encoding_lacks_is_written_as_escapes(shell: Shell):
    done = shell("list nowhere\u2192", "", line='PYTHONIOENCODING=ascii "$@"')
    assert done.returncode == 2
    assert "nowhere\\u2192" in done.stderr


def test_a_fault_of_the_program_is_told_where_its_traceback_cannot_be_kept(monkeypatch, capsys):
    import tempfile

    from peftkit_cli import main as program

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def fault() -> None:
        raise ZeroDivisionError("one over nothing")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    assert program.guarded(fault) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: one over nothing" in told
    assert "No space left on device" in told
    assert "in fault" in told
