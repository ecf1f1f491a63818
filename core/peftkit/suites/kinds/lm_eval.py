"""The tasks of EleutherAI's lm-evaluation-harness (Gao et al. 2021, doi 10.5281/zenodo.5371628).

They choose the data, the prompts and the metrics, and its own code scores. `peftkit[lm-eval]` installs it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from peftkit.assembly import Assembled
from peftkit.errors import PeftkitError
from peftkit.recipe import Recipe
from peftkit.suites import harness
from peftkit.suites.suite import SUITES, Part, Score, Suite

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


class Harness(Suite):
    """`lm-eval:NAME,NAME,…`: its tasks and groups, with task files of one's own in a folder."""

    wanted: ClassVar[str] = (
        "lm-eval:NAME,NAME,… is wanted, as lm-eval:arc_easy,boolq. A name is a task or a group of lm-eval, or one of "
        f"ours: {', '.join(LISTS)}."
    )

    def named(self, listed: str) -> list[str]:
        names = super().named(listed)
        if not names:
            raise PeftkitError(f"--suite is 'lm-eval:{listed}', and {self.wanted}")
        return list(dict.fromkeys(task for name in names for task in LISTS.get(name, (name,))))

    def open(self, names: Sequence[str], path: Path | None, recipe: Recipe) -> Mapping[str, Part]:
        check_installed()
        wrapped: list[Any] = []
        return {name: partial(_score, wrapped, name, task) for name, task in harness.load(names, path).items()}

    def versions(self) -> dict[str, str]:
        return {"lm-eval": harness.version()}


def _score(wrapped: list[Any], name: str, task: Any, subject: Assembled, limit: int | None) -> list[Score]:
    """Score a task on the subject as lm-eval's model, which the first task makes for all of them."""
    if not wrapped:
        wrapped.append(harness.wrap(subject, subject.recipe.eval.batch_size))
    return harness.score(wrapped[0], name, task, limit)


def check_installed() -> None:
    """Raise PeftkitError, which names the extra, where lm-eval or what it needs is not installed."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        raise PeftkitError(
            f"--suite lm-eval:… needs the package {' and '.join(lacking)}, which is not installed: "
            "pip install 'peftkit[lm-eval]', or pip install '.[lm-eval]' in the checkout."
        )


SUITES.add("lm-eval", Harness())
