"""Task suites of other programs, run on a run's adapted model or its base as it stands in memory.

EleutherAI's lm-evaluation-harness (Gao et al. 2021, doi 10.5281/zenodo.5371628) is the one suite: its tasks choose the
data, the prompts and the metrics, and its own code scores. `peftkit[lm-eval]` installs it.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.assembly import Assembled
from peftkit.errors import PeftkitError
from peftkit.evaluation import prepare
from peftkit.evaluation.runs import places
from peftkit.recipe import Recipe
from peftkit.suites import harness
from peftkit.versions import versions

SUITE = "lm-eval"
PACKAGES = ("lm_eval", "accelerate")
LISTS = {
    "commonsense8": (
        "boolq",
        "piqa",
        "social_iqa",
        "hellaswag",
        "winogrande",
        "arc_easy",
        "arc_challenge",
        "openbookqa",
    )
}
"""Names of ours for several tasks; lm-eval has groups of its own beside them, such as `glue` and `mmlu`."""
BASE = "-base"
"""The ending of an untrained model's results."""


def evaluate(
    target: Path | Recipe,
    suite: str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    limit: int | None = None,
    base: bool = False,
) -> dict[str, Any]:
    """Run the tasks of `suite` (`lm-eval:NAME,NAME,…`) on a run, its base (`base`) or the model of a recipe.

    `overrides` are `key=value` texts of a run's `eval` and `generation`; `folder` holds task files of one's own, and
    `limit` is the most inputs of a task. Returns the facts and `scores`, a list of {task, metric, filter, value,
    stderr, shots, inputs, version}. Each task's part is written to `eval/lm-eval-NAME.json` of the run, or of a
    recipe's `output`, once it is done. Raises PeftkitError where lm-eval is not installed, for a name that it does not
    have, and for data that cannot be loaded.
    """
    names = chosen(suite)
    if limit is not None and limit < 1:
        raise PeftkitError(f"the limit is {limit}, and at least one input of a task is scored.")
    recipe, output, adapter = places(target, base, overrides)
    check_installed()
    tasks = harness.load(names, folder)
    subject = prepare(recipe, adapter)
    model = harness.wrap(subject, recipe.eval.batch_size)
    facts = {"suite": SUITE, "limit": limit, **about(subject), "versions": {**versions(), SUITE: harness.version()}}
    scores: list[dict[str, Any]] = []
    for name, task in tasks.items():
        began = time.monotonic()
        figures = harness.score(model, name, task, limit)
        scores += figures
        if output is not None:
            path = output / "eval" / f"{SUITE}-{name.replace('/', '-')}{'' if adapter else BASE}.json"
            wall = round(time.monotonic() - began, 3)
            files.write_json(path, {"task": name, "scores": figures, **facts, "wall_s": wall})
    return {"tasks": list(tasks), "scores": scores, **facts}


def chosen(suite: str) -> list[str]:
    """Return the tasks that `lm-eval:NAME,NAME,…` names, each once."""
    kind, _, listed = suite.partition(":")
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if kind != SUITE or not names:
        raise PeftkitError(
            f"--suite is '{suite}', and {SUITE}:NAME,NAME,… is wanted, as {SUITE}:arc_easy,boolq. A name is a task or "
            f"a group of lm-eval, or one of ours: {', '.join(LISTS)}."
        )
    return list(dict.fromkeys(task for name in names for task in LISTS.get(name, (name,))))


def check_installed() -> None:
    """Raise PeftkitError, which names the extra, where lm-eval or what it needs is not installed."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise PeftkitError(
            f"--suite {SUITE}:… needs the package {' and '.join(lacking)}, which is not installed: "
            f"pip install 'peftkit[{SUITE}]', or pip install '.[{SUITE}]' in the checkout."
        )


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
    paths = sorted((folder / "eval").glob(f"{SUITE}-*.json"))
    return [_read(path) for path in paths if path.stem.endswith(BASE) == base]


def _read(path: Path) -> dict[str, Any]:
    report = files.read_json(path)
    try:
        _ = (report["model"], [(row["task"], label(row), row["value"], row["stderr"]) for row in report["scores"]])
    except (KeyError, TypeError) as error:
        raise PeftkitError(
            f"{path} holds no scores of {SUITE} ({type(error).__name__}: {error}): run it again."
        ) from None
    return report


def label(score: dict[str, Any]) -> str:
    """Name the metric of a score, and the filter of the answers where there is one."""
    return score["metric"] if score["filter"] == "none" else f"{score['metric']} ({score['filter']})"


def rows(scores: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return (task, metric, value, standard error, shots, inputs) of each score; "" for what there is not."""
    keys = ("value", "stderr", "shots", "inputs")
    return [(row["task"], label(row), *("" if row[key] is None else row[key] for key in keys)) for row in scores]
