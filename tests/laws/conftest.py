"""Runs every law for every subject: all in `make test-all`, those that their names draw in `make test`."""

from __future__ import annotations

import pytest
from draw import marked, turn, whole
from subjects import COSTLY, IDS, SUBJECTS, drawn

WORDS = {0.5: "half", 1.0: "same", 2.0: "twice"}
PACES = tuple(WORDS)
"""Times its learning rate at which a method has to learn: a rate that works on the edge alone is chance."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "position", "architecture"} <= set(metafunc.fixturenames):
        marker = metafunc.definition.get_closest_marker("costly")
        costly = 0 if marker is None else (*marker.args, COSTLY)[0]
        law = metafunc.function.__name__
        held = drawn(law, costly)
        if "pace" not in metafunc.fixturenames:
            kept = [place for place, subject in enumerate(SUBJECTS) if whole() or subject in held]
            cases = marked([SUBJECTS[place] for place in kept], held)
            metafunc.parametrize(("name", "position", "architecture"), cases, ids=[IDS[place] for place in kept])
            return
        chosen = [(*subject, PACES[turn(f"{law}/{subject}", len(PACES))]) for subject in held]
        crosses = [(subject, pace, word) for subject in zip(SUBJECTS, IDS, strict=True) for pace, word in WORDS.items()]
        made = [((*subject, pace), f"{label}-{word}") for (subject, label), pace, word in crosses]
        made = [(case, label) for case, label in made if whole() or case in chosen]
        cases = marked([case for case, _ in made], chosen)
        metafunc.parametrize(("name", "position", "architecture", "pace"), cases, ids=[label for _, label in made])
