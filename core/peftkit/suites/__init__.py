"""Suites: tasks with data and metrics of their own, run on a run's adapted model or its base as it stands in memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit import files, schemas
from peftkit.assembly import Assembled
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.evaluation.runs import places
from peftkit.recipe import Recipe
from peftkit.schemas import Stored, Text
from peftkit.suites.suite import SUITES
from peftkit.versions import versions

BASE = "-base"
"""The ending of an untrained model's results."""


class StoredScore(Stored):
    """A score of a task."""

    task: Text
    metric: Text
    filter: str
    value: float | None
    stderr: float | None


class StoredScores(Stored):
    """What `evaluate` writes of a task."""

    model: Text
    limit: int | None
    scores: list[StoredScore]


def evaluate(
    target: Path | Recipe,
    suite: str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    limit: int | None = None,
    base: bool = False,
) -> dict[str, Any]:
    """Run what `suite` names (as `lm-eval:NAME,…`) on a run, its base (`base`) or the model of a recipe.

    `overrides` are `key=value` texts of a run's `eval` and `generation`; `folder` holds files of one's own for the
    suite, and `limit` is the most inputs of a task. Returns the facts and `scores`, a list of {task, metric, filter,
    value, stderr, shots, inputs, version}. Each part is written to `eval/SUITE-NAME.json` of the run, or of a recipe's
    `output`, once it is done. Raises PeftkitError where a package is not installed, for a name that is not there, and
    for data that cannot be loaded.
    """
    kind, names = chosen(suite)
    if limit is not None and limit < 1:
        raise PeftkitError(f"the limit is {limit}, and at least one input of a task is scored.")
    recipe, output, adapter = places(target, base, overrides)
    parts = SUITES[kind].open(names, folder, recipe)
    subject = prepare(recipe, adapter)
    own = SUITES[kind].versions()
    facts = {"suite": kind, "limit": limit, **about(subject), "versions": {**versions(), **own}}
    scores: list[dict[str, Any]] = []
    for name, score in parts.items():
        began = time.monotonic()
        figures = score(subject, limit)
        scores += figures
        if output is not None:
            path = output / "eval" / f"{kind}-{name.replace('/', '-')}{'' if adapter else BASE}.json"
            wall = round(time.monotonic() - began, 3)
            files.write_json(path, {"task": name, "scores": figures, **facts, "wall_s": wall})
    return {"tasks": list(parts), "scores": scores, **facts}


def chosen(suite: str) -> tuple[str, list[str]]:
    """Return the suite that `SUITE:NAME,NAME,…` asks for, and the names, each once."""
    kind, _, listed = suite.partition(":")
    if kind not in SUITES:
        ways = " Or ".join(each.wanted for _, each in SUITES.items())
        raise PeftkitError(f"--suite is '{suite}', and {ways}")
    return kind, SUITES[kind].named(listed)


def about(subject: Assembled) -> dict[str, Any]:
    """Return what the scores depend on."""
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "adapter": subject.methods,
        "soft_tokens": len(subject.template.soft),
        "batch_size": subject.recipe.eval.batch_size,
        "device": subject.device.type,
        "precision": subject.precision,
    }


def read(folder: Path, *, base: bool = False) -> list[dict[str, Any]]:
    """Read what `evaluate` wrote into a run folder, a report a task in the order of their names."""
    paths = sorted(path for kind in SUITES.names() for path in (folder / "eval").glob(f"{kind}-*.json"))
    again = "Run peft eval --suite again."
    return [schemas.read(path, StoredScores, again) for path in paths if path.stem.endswith(BASE) == base]


def label(score: dict[str, Any]) -> str:
    """Name the metric of a score, and the filter of the answers where there is one."""
    return score["metric"] if score["filter"] == "none" else f"{score['metric']} ({score['filter']})"


def rows(scores: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return (task, metric, value, standard error, shots, inputs) of each score; "" for what there is not."""
    keys = ("value", "stderr", "shots", "inputs")
    return [(row["task"], label(row), *("" if row[key] is None else row[key] for key in keys)) for row in scores]
