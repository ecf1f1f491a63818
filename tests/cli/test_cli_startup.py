"""The command starts light: nothing heavy is imported before it is needed, and validation reads no weights."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("typer", "torch", "transformers", "datasets", "pydantic", "matplotlib", "numpy", "evaluate", "rich", "yaml")


@pytest.fixture(scope="module")
def startup():
    """The benchmark as a module."""
    specification = importlib.util.spec_from_file_location("startup", ROOT / "benchmarks" / "startup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_help_imports_nothing_heavy(startup):
    script = "import sys; from peftkit_cli.main import main; main(['--help']); print('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], env=startup.ENVIRONMENT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "LOADED"
    assert "peftkit_cli.main" in loaded
    assert not set(HEAVY) & set(loaded)


def test_validation_opens_no_weights_and_the_watch_would_see_it(startup, tmp_path):
    recipe = "model=bundled/tiny", "dataset=bundled/e2e"
    assert startup.opened_weights("validate", "quickstart", *recipe) == []
    assert startup.opened_weights("modules", "bundled/tiny") == []
    assert startup.opened_weights("data", "show", "quickstart", *recipe) == []
    opened = startup.opened_weights(
        "eval", "quickstart", *recipe, "generation.max_new_tokens=1", f"output={tmp_path / 'run'}", "--limit", "1"
    )
    assert any(path.endswith(".safetensors") for path in opened)
