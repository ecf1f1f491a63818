"""A command that is given something broken: it ends well, or with code 2 and one paragraph that says what is wrong."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit_cli.main import main

SECONDS = 20
"""Of a processor: what takes longer hangs, however busy the machine is."""
WAITING = 300
"""Seconds by the clock: what computes nothing hangs too."""
MEMORY = 3 << 30
"""Bytes of addresses that a command may take beyond those of the process: what is asked for in error gets none."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out[-2000:]}\n{self.err[-4000:]}"


def attempt(arguments: Sequence[object], told: str) -> Ended:
    """Run `peft` in this process; anything but success or a clear refusal fails, with `told`, which names the case."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        code = main([str(argument) for argument in arguments])
    ended = Ended(code, out.getvalue(), err.getvalue())
    about = f"{told}: peft {' '.join(map(str, arguments))}\n{ended}"
    assert code in (0, 2), about
    assert "Traceback" not in ended.err + ended.out, about
    if code == 2:
        complaint = [line for line in ended.err.splitlines() if not line.startswith("peft: note: ")]
        assert complaint, about
        assert complaint[0].startswith("peft: "), about
        assert "" not in complaint, about
    return ended


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Let what is done inside take `SECONDS` and `MEMORY`, no more."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"no end after {SECONDS} s of a processor, or {WAITING} s")

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (addresses() + MEMORY, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, earlier in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, earlier)


def addresses() -> int:
    """Return the bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def held(folder: Path) -> dict[str, str]:
    """Return what is in a folder: each path with a digest, the end of a link, or that it is a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            what = f"link to {os.readlink(path)}"
        elif path.is_file():
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            what = "folder"
        found[str(path.relative_to(folder))] = what
    return found
