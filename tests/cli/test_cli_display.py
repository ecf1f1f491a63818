"""A run is shown as a picture on a terminal and as lines in a pipe, from the same events."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from peftkit_cli import display

INFO = {
    "model": "bundled/tiny",
    "methods": ["lora"],
    "dataset": "bundled/e2e",
    "examples": 1200,
    "trainable_parameters": 12_345,
    "total_parameters": 1_500_000,
    "step": 0,
    "steps": 200,
    "device": "cpu",
    "precision": "fp32",
    "saved": {"padding": 0.004, "shared": 0.312},
    "largest": {"tokens": 1016, "step": 37},
}
SUMMARY = {
    "steps": 200,
    "wall_s": 83.0,
    "losses": {"first": 5.0, "last": 1.25, "best": 1.2, "validation": 1.3},
    "tokens_per_second": 4321.0,
    "peak_memory_bytes": 512_000_000,
}


def record(step: int) -> dict:
    """The log's record of a step."""
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 5.0 / step,
        "lr": 2e-4,
        "grad_norm": 0.75,
        "tokens": 4000,
        "trained_tokens": 2000,
        "tokens_per_s": 4321.0,
        "memory": 400_000_000,
    }


def play(watching, steps: int) -> None:
    """Send the events of a run to an observer."""
    watching.start(INFO)
    for step in range(1, steps + 1):
        watching.step(record(step))
    watching.evaluated({"step": steps, "validation_loss": 1.3})
    watching.notice("take [note]")
    watching.end(SUMMARY)
    watching.close()


def test_a_pipe_gets_about_forty_lines_with_the_first_and_the_last_step(capsys):
    play(display.Lines(), 200)
    lines = capsys.readouterr().out.splitlines()
    assert "lora · bundled/tiny · bundled/e2e, 1,200 examples · 12.3k of 1.5M parameters ·" in lines[0]
    assert lines[1].startswith("shared prompts: 31% of the tokens are computed once")
    assert lines[2] == "memory: the largest micro-batch of the first epoch, 1,016 tokens, comes in step 37"
    assert not any("packing" in line for line in lines)
    steps = [line for line in lines if line.startswith("step ") and "validation" not in line]
    assert 40 <= len(steps) <= 42
    assert steps[0].startswith(
        "step 1/200 · loss 5.0000 · learning rate 2.00e-04 · gradient norm 0.75 · tokens/s 4.32k"
    )
    assert steps[-1].startswith("step 200/200 ")
    assert "step 200 · validation loss 1.3000" in lines
    assert "take [note]" in lines
    assert lines[-1].startswith("done: 200 steps in 1:23 · loss 5.0000 → 1.2500 · validation 1.3000 · 4.32k tokens/s")
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    "other", [{"step": 37}, {"largest": {"tokens": 9, "step": 1}}, {"largest": None}], ids=["behind", "next", "tried"]
)
def test_a_largest_micro_batch_that_is_seen_is_not_told(other, capsys):
    display.Lines().start({**INFO, **other})
    assert "largest" not in capsys.readouterr().out


def test_a_terminal_gets_a_picture_with_the_latest_figures():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    watching = display.Live(screen)
    play(watching, 150)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    for text in ("step 150/200", "0.0333", "2.00e-04", "4.32k", "400 MB", "█", "31%", "take [note]", "done: 200 steps"):
        assert text in shown
    assert not watching.screen.is_started


def test_a_display_closed_before_its_start_leaves_the_terminal_alone():
    watching = display.Live(Console(file=io.StringIO(), force_terminal=True, width=100))
    watching.close()
    assert not watching.screen.is_started


@pytest.mark.parametrize(("terminal", "kind"), [(True, display.Live), (False, display.Lines)])
def test_the_display_suits_standard_output(monkeypatch, terminal, kind):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    watching = display.observer()
    watching.close()
    assert isinstance(watching, kind)
