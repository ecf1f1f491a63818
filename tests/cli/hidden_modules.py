"""Runs `peft` as on a system that is not POSIX: its modules, /proc, flags and ways to start processes are hidden.

The arguments are those of the command, and of further ones behind a `+`. torch and psutil, which have ways of their
own for each system, see the machine as it is.
"""

from __future__ import annotations

import builtins
import importlib.abc
import io
import multiprocessing
import os
import shutil
import sys
from multiprocessing.context import SpawnContext
from typing import Any

HIDDEN = ("resource", "fcntl", "pwd", "grp", "termios")
PLACES = ("/proc", "/sys/fs/cgroup")


def by_us() -> bool:
    """Say whether the nearest caller that is no part of Python's own library is the package."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("peftkit"):
            return True
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "__main__"}:
            return False
        frame = frame.f_back
    return False


class Hiding(importlib.abc.MetaPathFinder):
    """Modules that this system has not, for whoever asks on behalf of the package."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without(places: tuple[str, ...], function: Any) -> Any:
    """Return a function of a path that finds nothing in `places` for the package."""

    def asked(path: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(places) and by_us():
            raise FileNotFoundError(2, "hidden", os.fspath(path))
        return function(path, *arguments, **named)

    return asked


def no_folders(function: Any) -> Any:
    """Return `os.open` as Windows has it, which opens no folder."""

    def opened(path: Any, *arguments: Any, **named: Any) -> int:
        if named.get("dir_fd") is None and os.path.isdir(path) and by_us():
            raise PermissionError(13, "a folder", os.fspath(path))
        return function(path, *arguments, **named)

    return opened


def no_fork(method: str | None = None) -> Any:
    if method not in (None, "spawn"):
        raise ValueError(f"cannot find context for {method!r}")
    return SpawnContext()


def hide() -> None:
    for name in HIDDEN:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Hiding())
    for name in ("O_DIRECTORY", "O_NOFOLLOW", "fork", "getuid", "pread", "sched_getaffinity", "uname"):
        delattr(os, name)
    os.open, os.stat = no_folders(without(PLACES, os.open)), without(PLACES, os.stat)
    builtins.open = io.open = without(PLACES, io.open)
    shutil._use_fd_functions = False  # pyright: ignore[reportAttributeAccessIssue]
    multiprocessing.set_start_method("spawn", force=True)
    multiprocessing.get_all_start_methods = lambda: ["spawn"]
    multiprocessing.get_context = no_fork


if __name__ == "__main__":
    # What the libraries underneath import is theirs, and they have other ways where it is missing.
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import psutil  # noqa: F401
    import torch._inductor.utils  # noqa: F401
    import transformers  # noqa: F401

    hide()
    from peftkit_cli.main import main

    commands = " ".join(sys.argv[1:]).split(" + ")
    sys.exit(max(main(command.split()) for command in commands))
