"""A mistake ends in one paragraph on stderr and exit code 2; only a bug of the program keeps a traceback, in a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from peftkit.errors import PeftkitError
from peftkit_cli import main as program


def is_clean(done) -> bool:
    """Say whether a command refused its input as it should: one paragraph, exit code 2, no traceback."""
    paragraph = done.err.strip()
    return done.code == 2 and paragraph.startswith("peft: ") and "\n\n" not in paragraph and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "'train'"),
        (["train"], "RECIPE"),
        (["train", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "quikstart"], "'quickstart'"),
        (["train", "quickstart", "--outptu", "x"], "--output"),
        (["train", "quickstart", "rnak=4", "--dry-run"], "'rank'"),
        (["train", "quickstart", "train.max_steps", "--dry-run"], "train.max_steps"),
        (["validate", "quickstart", "train.epochs=many"], "many"),
        (["validate", "quickstart", "method=lroa"], "'lora'"),
        (["validate", "quickstart", "method={lora: {targets: [nonsense]}}"], "nonsense"),
        (["validate", "quickstart", "rank=100000"], "100000"),
        (["validate", "quickstart", "dataset=bundled/e3e"], "bundled/e2e"),
        (["validate", "quickstart", "quantization=gqtp"], "'gptq'"),
        (["validate", "quickstart", "quantization=gptq", "quantization.bit=3"], "'bits'"),
        (["validate", "quickstart", "quantization=gptq", "calibration.sampels=3"], "'samples'"),
        (["validate", "quickstart", "pruning=wnada"], "'wanda'"),
        (["validate", "quickstart", "pruning={wanda: {pattern: '2:7'}}"], "2:7"),
        (["validate", "quickstart", "model=no/such/folder/at/all"], "no/such/folder/at/all"),
        (["validate", "quickstart", "dataset.path=nowhere", "dataset.name=e2e"], "nowhere"),
        (["eval", "runs/nowhere"], "runs/nowhere"),
        (["eval", "quickstart", "--limit", "0"], "--limit"),
        (["eval", "quickstart", "--split", "tset"], "'test'"),
        (["merge", "runs/nowhere", "--output", "x"], "runs/nowhere"),
        (["merge", "."], "--output"),
        (["merge", ".", "--output", "x"], "run folder"),
        (["merge", ".", "--output", "x", "--into", "orignal"], "original"),
        (["merge", ".", "--output", "x", "--bound", "0.5"], "--requantize"),
        (["quantize", "bundled/tiny", "--format", "gptq", "--output", "x"], "--data"),
        (["export", "runs/nowhere", "--format", "merged", "--output", "x"], "runs/nowhere"),
        (["generate", "runs/nowhere", "hello"], "runs/nowhere"),
        (["list", "method"], "methods"),
        (["score", "e3e", "--predictions", "a", "--references", "b"], "'e2e'"),
        (["score", "e2e", "--predictions", "nowhere.txt", "--references", "nowhere.csv"], "nowhere"),
        (["new", "--rank", "many"], "--rank"),
        (["new", "--method", "lroa", "--output", "new.yaml"], "'lora'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_a_paragraph_that_names_them(peft, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    done = peft(*arguments)
    assert is_clean(done), done
    assert named in done.err
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_brackets_of_a_message_are_printed_as_they_are(peft, tmp_path):
    path = tmp_path / "[bold]odd[red].yaml"
    path.write_text("model: [1, 2]\nmethod: lora\ndataset: bundled/e2e\n", encoding="utf-8")
    done = peft("validate", path)
    assert is_clean(done)
    assert "[bold]odd[red].yaml" in done.err


def test_a_wrong_key_is_told_with_file_and_line(peft, recipe):
    recipe.write_text(recipe.read_text().replace("rank: 4", "rnak: 4"), encoding="utf-8")
    done = peft("validate", recipe)
    assert is_clean(done)
    assert f"{recipe}:3" in done.err
    assert "rnak" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_refused(peft, recipe, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    assert is_clean(peft("train", recipe, "--output", locked / "run"))


def test_an_output_path_below_a_file_is_refused(peft, recipe, tmp_path):
    done = peft("train", recipe, "--output", recipe / "run")
    assert is_clean(done), done
    assert str(recipe) in done.err


def test_a_fault_of_the_program_is_short_and_keeps_its_traceback_in_a_file(capsys):
    def fault() -> None:
        raise ZeroDivisionError("one over [nothing]")

    assert program.guarded(fault) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: one over [nothing]" in told
    assert "Traceback" not in told
    report = Path(re.findall(r"the file (\S+\.log)", told)[0])
    assert "in fault" in report.read_text()
    report.unlink()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PeftkitError("no"), 2),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(capsys, error, code):
    def fault() -> None:
        raise error

    assert program.guarded(fault) == code
    assert capsys.readouterr().err.startswith("peft: ")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interrupted_run_exits_with_its_signal_and_says_how_to_continue(capsys, number, code):
    from peftkit.training import Interrupted

    def fault() -> None:
        raise Interrupted(number, Path("runs/x/checkpoints/step-00000007"), 7)

    assert program.guarded(fault) == code
    assert "--resume" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(peft_process):
    done = peft_process("list", "recipes", reader="true")
    assert (done.out, done.err) == ("", "")


def test_a_mistake_ends_the_process_with_exit_code_2(peft_process):
    done = peft_process("train", "nowhere.yaml")
    assert is_clean(done)
    assert done.out == ""
