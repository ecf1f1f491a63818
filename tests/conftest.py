"""What every test may use: the place of the real data, a quiet torch of few threads, and one entry alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from draw import concerns, draw_alone
from forked import Server

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What tests encode and pack is not kept among a person's own.
os.environ.setdefault("PEFTKIT_CACHE", tempfile.mkdtemp(prefix="peftkit-cache-"))
# METEOR's program reads its tables for ten seconds; the tests of METEOR switch it on.
os.environ.setdefault("PEFTKIT_METEOR", "off")
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only", metavar="NAME", help="hold one registered entry (a method, format, task, …) to all")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") == "not thorough" and config.getoption("--only") is None:
        draw_alone()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    entry = config.getoption("--only")
    if entry is None:
        return
    kept, rest, known = [], [], False
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        mine = concerns(parameters, item.path.stem, entry)
        known |= mine
        (kept if mine or item.get_closest_marker("entries") else rest).append(item)
    items[:] = kept if known else []
    config.hook.pytest_deselected(items=rest if known else kept + rest)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and config.getoption("--only") is not None:
        terminalreporter.write_line(f"no test is of an entry {config.getoption('--only')!r}; `peft list` names them")


@pytest.fixture
def only(request: pytest.FixtureRequest) -> str | None:
    """The one entry that is held to everything; None where all are."""
    return request.config.getoption("--only")


@pytest.fixture(scope="session", autouse=True)
def _single_thread():
    import torch

    torch.set_num_threads(int(os.environ.get("PEFTKIT_TEST_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("PEFTKIT_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set PEFTKIT_SHARED_DATA to the folder that holds e2e/, webnlg/, …")
    return folder


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The parent of processes that have imported everything."""
    found = Server()
    yield found
    found.close()


@pytest.fixture
def few_validation_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure validation losses on 16 examples, where a run of two steps would spend most of its time on them."""
    from peftkit.training import preparation

    monkeypatch.setattr(preparation, "VALIDATION_EXAMPLES", 16)
