"""Adding one file is enough: a toy of every kind is held to its laws, and one that breaks its word is caught."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from draw import EVERY
from toys import SAMPLE, TOYS

ROOT = Path(__file__).resolve().parents[2]
HELD = [ROOT / "tests" / name for name in ("laws", "optim/test_optimizers.py", "quantization/test_formats.py")]
LAWS = ROOT / "tests" / "laws"


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the core with the toys, whose large files are linked."""
    core = tmp_path_factory.mktemp("toys") / "core"
    shutil.copytree(ROOT / "core", core, ignore=shutil.ignore_patterns("__pycache__", "bundled"))
    (core / "peftkit/models/bundled").symlink_to(ROOT / "core/peftkit/models/bundled")
    data = core / "peftkit/data/bundled"
    data.mkdir()
    for sample in (ROOT / "core/peftkit/data/bundled").iterdir():
        (data / sample.name).symlink_to(sample)
    for name in ("configs", "recipes"):
        (core.parent / name).symlink_to(ROOT / name)
    for kind, toy in TOYS.items():
        for name, text in toy.files(kind).items():
            (core / "peftkit" / toy.place / f"{name}.py").write_text(text, encoding="utf-8")
            if toy.place == "tasks":
                (data / name).mkdir()
                for split in ("train", "validation", "test"):
                    (data / name / f"{split}.csv").write_text(SAMPLE, encoding="utf-8")
    return core


@pytest.fixture(scope="module")
def outcome(overlay: Path) -> str:
    """Return what `make test` says of the toys in all tests of entries, and of the others in those of their word.

    One process for all of them: to start one and to find its tests takes longer than to run them. What is costly holds
    one toy, or waits for `make test` of a real entry: compiling, and bases that other libraries have packed.
    """
    wrong = [f"wrong_{kind} and ({toy.holding})" for kind, toy in TOYS.items()]
    chosen = f"toy_ and (not compiles or toy_linear) and not wrong_ or {' or '.join(f'({one})' for one in wrong)}"
    paths = f"pythonpath={overlay} {ROOT / 'cli'} {ROOT / 'tools'} {ROOT / 'tests'}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", paths, "-v", "--tb=line"]
    done = subprocess.run(
        [*command, *map(str, HELD), "-k", chosen, "-m", "not thorough", f"--ignore={LAWS / 'test_foreign.py'}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(overlay), "PYTHONDONTWRITEBYTECODE": "1", EVERY: "1"},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def outcomes(text: str, prefix: str) -> dict[tuple[str, str], str]:
    """Return what became of each test of the entries: by (test with its parameters, entry)."""
    lines = re.findall(r"::(\w+\[\S*\]) (PASSED|SKIPPED|FAILED|ERROR)", text)
    return {
        (test, entry): verdict
        for test, verdict in lines
        for entry in re.findall(rf"(?<![a-z_]){prefix}_[a-z_]+", test.partition("[")[2])
    }


@pytest.mark.parametrize("kind", TOYS)
def test_one_file_is_held_to_the_laws_of_its_kind(kind, outcome):
    mine = {test: verdict for (test, entry), verdict in outcomes(outcome, "toy").items() if entry == f"toy_{kind}"}
    counts = Counter(mine.values())
    bad = [test for test, verdict in mine.items() if verdict not in ("PASSED", "SKIPPED")]
    assert not bad, outcome[-6000:]
    assert counts["PASSED"] >= TOYS[kind].tests, counts


@pytest.mark.parametrize("kind", TOYS)
def test_one_that_breaks_its_word_is_caught(kind, outcome):
    failed = {entry for (_, entry), verdict in outcomes(outcome, "wrong").items() if verdict == "FAILED"}
    broken = {name for name in TOYS[kind].files(kind) if name.startswith("wrong_")}
    assert broken
    assert broken <= failed, outcome[-6000:]


def test_every_law_of_methods_holds_a_toy(outcome):
    held = {test.partition("[")[0] for test, entry in outcomes(outcome, "toy") if entry == "toy_linear"}
    laws = {
        name
        for path in LAWS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(name, position, architecture", path.read_text(encoding="utf-8"), re.M)
    }
    assert len(laws) >= 20
    assert laws <= held
