"""The files of benchmarks/ as modules, for tests."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@contextmanager
def benchmark_files(names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """Import files of benchmarks/ by name; they set the number of threads and the import path, which are put back."""
    threads, path, loaded = torch.get_num_threads(), list(sys.path), {name: sys.modules.get(name) for name in names}
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = path
    for name, module in loaded.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module
    torch.set_num_threads(threads)
