"""Run folders changed at random: a resumed run ends with the same bits or is refused; nothing in it is lost."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from draw import thorough
from small_runs import make_recipe

from peftkit import files, recipe
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.training import Interrupted, Silent, session, train

CASES = 500
PORTIONS = [range(start, start + 50) for start in range(0, CASES, 50)]
HELD = range(10)
SECONDS = 20.0


class Stops(Silent):
    """Interrupts the run after its fifth step."""

    def step(self, record: dict[str, object]) -> None:
        if record["step"] == 5:
            os.kill(os.getpid(), 2)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def chosen(source: Path) -> Recipe:
    return recipe.load(
        make_recipe(source, "lora", max_steps=6, save_every=2, keep_best="validation_loss", evaluate_every=2)
    )


@pytest.fixture(scope="module")
def made(chosen: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `whole` run, and one `stopped` after step 5."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.plot, "draw_loss", lambda *_: None)
        train(chosen, place / "whole")
        with pytest.raises(Interrupted):
            train(chosen, place / "stopped", observer=Stops())
    return place


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 8])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def lengthen(path: Path, chance: random.Random) -> None:
    more = chance.choice([b"\0", b"\n", b"}", b"{", b'{"step": 6}\n', b"\xff" * 9, b"[" * 99_999, b"&a [*a, *a]\n"])
    place = chance.randrange(path.stat().st_size + 1)
    content = path.read_bytes()
    path.write_bytes(content[:place] + more + content[place:])


def put_number(path: Path, chance: random.Random) -> None:
    """Write another value in the place of one of the digits of a text."""
    content = path.read_bytes()
    places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
    place = chance.choice(places or [0])
    value = chance.choice([b"null", b"-1", b"9" * 40, b"NaN", b"1e999", b'"x"', b"[]", b"{}", b"true", b"0"])
    path.write_bytes(content[:place] + value + content[place + 1 :])


def take_away(path: Path, chance: random.Random) -> None:
    files.remove(chance.choice([path, path, path.parent]) if "checkpoints" in str(path) else path)


def make_folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(chance.choice(["nowhere", path.name, "/dev/null", ".."]))


def swap(path: Path, chance: random.Random) -> None:
    other = chance.choice([item for item in path.parents[chance.randrange(2)].rglob("*") if item.is_file()])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    *(flip, cut, lengthen, put_number, take_away, make_folder, make_link, swap)
]


@pytest.mark.parametrize("cases", [HELD, *map(thorough, PORTIONS)], ids=lambda cases: f"{cases[0]}-{cases[-1]}")
def test_a_changed_run_folder(cases: range, chosen: Recipe, made: Path, tmp_path: Path):
    expected = (made / "whole" / "adapter" / "adapter.safetensors").read_bytes()
    for case in cases:
        chance, run = random.Random(case), tmp_path / str(case)
        shutil.copytree(made / "stopped", run)
        path = chance.choice(sorted(item for item in run.rglob("*") if item.is_file()))
        change = chance.choice(MUTATIONS)
        change(path, chance)
        told = f"case {case}: {change.__name__} of {path.relative_to(run)}"
        held = {item: item.read_bytes() for item in run.rglob("*") if item.is_file()}
        began = time.monotonic()
        try:
            train(chosen, run, resume=True)
        except PeftkitError:
            now = {item: item.read_bytes() for item in run.rglob("*") if item.is_file()}
            assert now == held, f"{told}: a refused command changed {set(now) ^ set(held) or 'a file'}"
        else:
            assert (run / "adapter" / "adapter.safetensors").read_bytes() == expected, told
        assert time.monotonic() - began < SECONDS, told
        shutil.rmtree(run)
