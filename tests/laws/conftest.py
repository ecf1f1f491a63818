"""Runs every law for every subject; a costly one in `make test` on one architecture for each trial of a method."""

from __future__ import annotations

from typing import Any

import pytest
from subjects import IDS, SUBJECTS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "position", "architecture"} <= set(metafunc.fixturenames):
        costly = metafunc.definition.get_closest_marker("costly") is not None
        subjects: list[Any] = [thinned(subject) for subject in SUBJECTS] if costly else SUBJECTS
        metafunc.parametrize(("name", "position", "architecture"), subjects, ids=IDS)


def thinned(subject: tuple[str, int, str]) -> Any:
    """Leave a subject to `make test-all` unless it is its trial's turn on that architecture."""
    name, position, architecture = subject
    there = [other for other_name, trial, other in SUBJECTS if (other_name, trial) == (name, position)]
    mine = architecture == there[position % len(there)]
    return subject if mine else pytest.param(*subject, marks=pytest.mark.thorough)
