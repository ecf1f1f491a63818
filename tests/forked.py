"""Modules run in processes of their own that start in milliseconds: a parent that has imported everything forks them.

A process that imports torch and transformers first takes five seconds for it, more than what most tests do there.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
USED = ("peftkit.evaluation", "peftkit.comparison", "peftkit.training.session", "matplotlib.pyplot", "sacrebleu")
USED += ("transformers.models.llama.modeling_llama", "transformers.generation", "torch.profiler")
"""What most runs import."""
DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT


class Server:
    """The parent, which itself is a process of its own: a test's process may have threads, which a fork loses."""

    def __init__(self) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in ("core", "cli", "tools"))
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        )

    def ask(self, *request: Any) -> Any:
        """Send a request to the parent and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, command: list[str], stdout: Any = DEVNULL, stderr: Any = DEVNULL, **_: Any) -> Forked:
        """Run `[python, -m, MODULE, *arguments]`; what it says goes to open files or nowhere, it reads nothing."""
        names = [None if stream in (DEVNULL, STDOUT) else stream.name for stream in (stdout, stderr)]
        names[1] = names[0] if stderr == STDOUT else names[1]
        return Forked(self, self.ask("start", command[2:], os.getcwd(), *names))

    def close(self) -> None:
        """End the parent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Forked:
    """A process of the server, as `subprocess.Popen` has one."""

    def __init__(self, server: Server | Parent, pid: int):
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self.server.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for its end; returns the exit code."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < end, "the process does not end"
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Forking:
    """Stands for the module `subprocess`: a process is forked from the server; the first `started` are started."""

    DEVNULL, STDOUT = DEVNULL, STDOUT

    def __init__(self, server: Server, started: int = 0):
        self.server, self.started = server, started

    def Popen(self, command: list[str], **options: Any) -> Any:  # noqa: N802
        """Start a process as `subprocess.Popen` does."""
        self.started -= 1
        return (subprocess.Popen if self.started >= 0 else self.server.start)(command, **options)


class Parent:
    """What the server's process does; a process that it forks is a parent of its own for those that this one starts."""

    DEVNULL, STDOUT = DEVNULL, STDOUT

    def ask(self, request: str, *arguments: Any) -> Any:
        """Do one request."""
        return getattr(self, request)(*arguments)

    def Popen(self, command: list[str], **options: Any) -> Forked:  # noqa: N802
        """Start a process as `subprocess.Popen` does."""
        return Server.start(self, command, **options)  # type: ignore[arg-type]

    def poll(self, pid: int) -> int | None:
        """Return the exit code of a process, None while it runs."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    def start(self, command: list[str], folder: str, stdout: str | None, stderr: str | None) -> int:
        """Fork; the child runs the module in the folder and ends."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            streams = [os.open(name or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in (stdout, stderr)]
            for number, stream in enumerate([os.open(os.devnull, os.O_RDONLY), *streams]):
                os.dup2(stream, number)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            # Closed with the objects of a process that was forked before, the numbers would be lost here.
            sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
            # Torch makes its threads anew at the first call after a fork, and may fail if two threads make it at once.
            importlib.import_module("torch").set_num_threads(1)
            importlib.import_module("peftkit.comparison.runs").subprocess = Parent()  # type: ignore[attr-defined]
            module, *sys.argv[1:] = command
            code = ended(module)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def ended(module: str) -> int:
    """Run a module as a program; returns its exit code."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as exit:
        if not isinstance(exit.code, str):
            return exit.code or 0
        print(exit.code, file=sys.stderr)
        return 1
    return 0


def serve() -> None:
    """Answer requests until the input ends; the answers alone are on the standard output."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    for name in USED:
        importlib.import_module(name)
    # Registries and metrics import what they hold when it is asked for.
    for registry in ("method.METHODS", "tasks.TASKS", "metrics.METRICS", "quantization.quantizer.QUANTIZERS"):
        module, _, name = registry.rpartition(".")
        getattr(importlib.import_module(f"peftkit.{module}"), name).items()
    # A run of few steps spends most of its time on validation losses.
    importlib.import_module("peftkit.training.preparation").VALIDATION_EXAMPLES = 16  # type: ignore[attr-defined]
    parent = Parent()
    for line in sys.stdin:
        print(json.dumps(parent.ask(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
