"""Runs every law for every subject: all in `make test-all`, those that their names draw in `make test`."""

from __future__ import annotations

import pytest
from draw import marked, turn
from subjects import IDS, SUBJECTS, drawn

PACES = (0.5, 1.0, 2.0)
"""Times its learning rate at which a method has to learn: a rate that works on the edge alone is chance."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "position", "architecture"} <= set(metafunc.fixturenames):
        costly = metafunc.definition.get_closest_marker("costly") is not None
        law = metafunc.function.__name__
        held = drawn(law, costly)
        if "pace" not in metafunc.fixturenames:
            metafunc.parametrize(("name", "position", "architecture"), marked(SUBJECTS, held), ids=IDS)
            return
        cases = [(*subject, pace) for subject in SUBJECTS for pace in PACES]
        held = [(*subject, PACES[turn(f"{law}/{subject}", len(PACES))]) for subject in held]
        ids = [f"{label}-{word}" for label in IDS for word in ("half", "same", "twice")]
        metafunc.parametrize(("name", "position", "architecture", "pace"), marked(cases, held), ids=ids)
