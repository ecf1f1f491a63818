"""What is asked of lm-evaluation-harness: its tasks by name, their data, and their scores on a model."""

from __future__ import annotations

import difflib
import importlib
import logging
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from peftkit.assembly import Assembled
from peftkit.data import hub
from peftkit.errors import PeftkitError

SEED, SAMPLING_SEED = 0, 1234
"""What lm-eval seeds Python's generator with, and numpy's, torch's and the choice of examples in the prompt."""
RESAMPLES = 1000
"""For the standard error of a metric that has no formula for one; lm-eval itself takes 100,000."""
NEAREST = 3


def version() -> str:
    """Return the version of lm-eval."""
    return metadata.version("lm_eval")


def load(names: Sequence[str], folder: Path | None) -> dict[str, Any]:
    """Return lm-eval's loaded task or group of each name; tasks of `folder` come before lm-eval's own."""
    with quiet():
        index = _index(names, folder)
        return {name: _load(index, name) for name in names}


def _index(names: Sequence[str], folder: Path | None) -> Any:
    """Return lm-eval's index of tasks, which has all the names."""
    tasks = importlib.import_module("lm_eval.tasks")
    if folder is not None and not folder.is_dir():
        raise PeftkitError(f"--suite-path is {folder}, and there is no such folder: name one with task files (YAML).")
    # The whole index has thousands of files, which take a minute to read.
    if folder is not None:
        own = tasks.TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    index = tasks.TaskManager(include_path=str(folder) if folder else None)
    known = set(index.all_tasks)
    for name in names:
        if name not in known:
            guesses = difflib.get_close_matches(name, sorted(known), n=NEAREST)
            hint = f" Did you mean {' or '.join(guesses)}?" if guesses else ""
            own = f" and the files in {folder}" if folder else ""
            raise PeftkitError(
                f"lm-eval {version()}{own} has no task '{name}'.{hint} 'lm-eval ls tasks' lists all {len(known):,}."
            )
    return index


def _load(index: Any, name: str) -> Any:
    try:
        loaded = index.load([name])
    # A task may fail in its file, in its own Python code, and in its data: each with errors of its own.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        away = isinstance(error, OSError) and (hub.offline() or not hub.answers())
        hint = f" The Hugging Face hub ({hub.endpoint()}) cannot be reached." if away else ""
        raise PeftkitError(
            f"lm-eval's task '{name}' could not be loaded ({type(error).__name__}: {reason}).{hint}"
        ) from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            what = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else "asks about pictures"
            raise PeftkitError(f"lm-eval's task '{task_name}' {what}, which is not done here: leave it out.")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SAMPLING_SEED)
    return loaded


def wrap(subject: Assembled, batch_size: int) -> Any:
    """Return the subject's model, as it stands, as a model of lm-eval."""
    from peftkit.suites.adapted import AdaptedLM

    with quiet():
        return AdaptedLM(
            subject.model,
            subject.tokenizer,
            soft=subject.template.soft,
            batch_size=batch_size,
            precision=subject.precision,
        )


def score(model: Any, name: str, task: Any, limit: int | None) -> list[dict[str, Any]]:
    """Return the scores of a loaded task or group, as `peftkit.suites.evaluate` lists them."""
    import numpy as np

    random.seed(SEED)
    np.random.seed(SAMPLING_SEED)
    torch.manual_seed(SAMPLING_SEED)
    evaluator = importlib.import_module("lm_eval.evaluator")
    try:
        # What its metrics print is not the answer of the command.
        with quiet(), redirect_stdout(sys.stderr):
            results = evaluator.evaluate(
                lm=model, task_dict=task, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False
            )
    except (AssertionError, ValueError, ImportError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PeftkitError(f"lm-eval could not run the task '{name}' ({type(error).__name__}: {reason}).") from error
    return list(_scores(results))


def _scores(results: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for task, figures in {**results.get("groups", {}), **results["results"], **results.get("groups", {})}.items():
        for key, value in figures.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            yield {
                "task": task,
                "metric": metric,
                "filter": kind,
                "value": _number(value),
                "stderr": _number(figures.get(f"{metric}_stderr,{kind}")),
                "shots": results["n-shot"].get(task),
                "inputs": results["n-samples"].get(task, {}).get("effective"),
                "version": results["versions"].get(task),
            }


def _number(value: Any) -> float | None:
    """Return a finite number, or None: lm-eval writes `N/A` where it has none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


@contextmanager
def quiet() -> Iterator[None]:
    """Let lm-eval log its errors alone inside; its notices are about options that are not the user's."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
