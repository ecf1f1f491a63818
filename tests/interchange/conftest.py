"""`peft` in this process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from peftkit_cli.main import main


@pytest.fixture
def peft(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run `peft` in this process; returns its exit code and what it wrote."""

    def run(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run
