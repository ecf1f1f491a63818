"""Runs every law for every subject."""

from __future__ import annotations

import pytest
from subjects import IDS, SUBJECTS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"name", "position", "architecture"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("name", "position", "architecture"), SUBJECTS, ids=IDS)
