from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the tokenizer and the documents."""
    return tmp_path_factory.mktemp("source")
