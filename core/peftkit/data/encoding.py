"""Encoding whole data sets: in chunks, and large ones on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from peftkit import machine
from peftkit.data.encode import EncodedExamples
from peftkit.data.example import Example
from peftkit.data.examples import Examples
from peftkit.data.rows import EncodedRows, RowBlock
from peftkit.errors import PeftkitError

CHUNK = 2048
"""Examples that are encoded together; a data set of no more is encoded in this process."""
Encode = Callable[[Sequence[Example]], EncodedExamples]
"""Encodes examples, each as it would be encoded by itself."""
Told = Callable[[int], None]
"""Receives the number of examples that are encoded so far."""


@dataclass(frozen=True)
class EncodedPart:
    """A chunk of a data set, encoded."""

    block: RowBlock
    sources: np.ndarray
    """For each row, the position of its example in the data set; [N] int64."""
    dropped: int
    prompts_cut: int
    targets_cut: int
    special: tuple[str, ...]
    examples: int
    """Of the chunk, dropped ones included."""


def parts(examples: Sequence[Example], encode: Encode, told: Told = lambda count: None) -> Iterator[EncodedPart]:
    """Encode examples in order, chunk by chunk; which processes do it changes nothing of what they give.

    Raises what `encode` and the examples raise.
    """
    held = examples if isinstance(examples, Examples) else Examples.at_once(lambda: examples)
    workers = processes() if next(islice(held.items(), CHUNK, None), None) is not None else 1
    made = _apart(held, encode, workers) if workers > 1 else _one_by_one(held, encode, 0, 1)
    done = 0
    for part in made:
        done += part.examples
        told(done)
        yield part


def processes() -> int:
    """Return how many processes encode a large data set: as many as there are cores, where forking is safe."""
    forks = sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()
    return machine.cores() if forks and not multiprocessing.current_process().daemon else 1


def joined(made: Iterable[EncodedPart]) -> EncodedExamples:
    """Return the rows of all parts, and what the length limit cost."""
    held = list(made)
    return EncodedExamples(
        EncodedRows([part.block for part in held]),
        np.concatenate([np.zeros(0, np.int64), *(part.sources for part in held)]),
        sum(part.dropped for part in held),
        sum(part.prompts_cut for part in held),
        sum(part.targets_cut for part in held),
        [name for part in held for name in part.special],
    )


def _one_by_one(examples: Examples, encode: Encode, first: int, step: int) -> Iterator[EncodedPart]:
    chunks = examples.chunks(CHUNK, first, step)
    while True:
        with _without_collecting():
            number, chunk = next(chunks, (0, []))
            if not chunk:
                return
            part = _encoded(chunk, encode, number * CHUNK)
        yield part


def _encoded(chunk: Sequence[Example], encode: Encode, before: int) -> EncodedPart:
    done = encode(chunk)
    sources = np.fromiter(done.sources, np.int64, len(done.rows)) + before
    cost = (done.dropped, done.prompts_cut, done.targets_cut, tuple(done.special))
    return EncodedPart(RowBlock.of(done.rows), sources, *cost, len(chunk))


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Hold off the search for garbage, which goes through the objects of a chunk many times and finds none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _apart(examples: Examples, encode: Encode, workers: int) -> Iterator[EncodedPart]:
    """Encode on several processes, each of which reads the files and makes every so many-th chunk."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    receivers = [receiver for receiver, _ in pipes]
    made: list[BaseProcess] = []
    try:
        with _forking():
            for number, (_, sender) in enumerate(pipes):
                arguments = (examples, encode, number, workers, sender, receivers)
                made.append(context.Process(target=_work, args=arguments, daemon=True))
                made[-1].start()
        for _, sender in pipes:
            sender.close()
        number = 0
        while (part := _received(receivers[number % workers])) is not None:
            yield part
            number += 1
    finally:
        for process in made:
            process.terminate()
        for process in made:
            process.join()
        for receiver in receivers:
            receiver.close()


def _received(receiver: Connection) -> EncodedPart | None:
    """Return the next part of a process, or None at its end; what it raised is raised here."""
    try:
        found = receiver.recv()
    except EOFError:
        raise PeftkitError(
            "a process that encodes the data set ended before its work was done: the memory may have run out."
        ) from None
    if isinstance(found, BaseException):
        raise found
    return found


def _work(
    examples: Examples, encode: Encode, number: int, workers: int, sender: Connection, receivers: list[Connection]
) -> None:
    """Encode this process's chunks and send them; the pipe holds few, and the process waits until they are taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # What was there before is not looked through for garbage again and again, nor copied for that.
    gc.freeze()
    for receiver in receivers:
        # Else no process would see that the one which reads has ended.
        receiver.close()
    try:
        try:
            for part in _one_by_one(examples, encode, number, workers):
                sender.send(part)
            sender.send(None)
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except BaseException as error:
            sender.send(error)
    except BrokenPipeError:
        pass
    finally:
        # Neither exit handlers nor buffers of the process that was forked are this one's to run and write.
        sender.close()
        os._exit(0)


@contextmanager
def _forking() -> Iterator[None]:
    """Let processes be forked beside threads: what they run takes no lock that one of those may hold."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
