"""The commands as functions: train, evaluate, compare and load, with recipes as objects, files, names or mappings.

`from peftkit import train` reads this module when it is asked for; `import peftkit` alone stays light. Every mistake in
what is given is a `PeftkitError`, whose text is what the command line would print.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftkit import suites
from peftkit.assembly import Assembled, agree, read_run
from peftkit.comparison import ComparisonWatcher, EntryRun
from peftkit.comparison import compare as compare_recipe
from peftkit.data.example import Turn
from peftkit.errors import PeftkitError
from peftkit.evaluation import evaluate as evaluate_subject
from peftkit.evaluation import prepare, settings_for
from peftkit.generation.under_transformers import put_in_front, take_keys, tell_prompts
from peftkit.interchange import as_run, published_instead
from peftkit.models.loaded import ModelAndTokenizer
from peftkit.recipe import Recipe
from peftkit.recipe.catalogue import find
from peftkit.report.results import Comparison
from peftkit.tasks import TASKS
from peftkit.tasks.source import PREFIX
from peftkit.training import Observer, Summary
from peftkit.training import train as train_recipe

__all__ = ["Comparison", "Observer", "Recipe", "Summary", "TrainedRun", "compare", "evaluate", "load", "train"]

Source = Recipe | str | os.PathLike[str] | Mapping[str, Any]
"""A recipe: an object, a YAML file, the name of a shipped one, or the mapping that a file would hold."""


@dataclass(frozen=True)
class TrainedRun(os.PathLike[str]):
    """A finished run; it stands for its folder wherever a path is taken."""

    folder: Path
    """The run folder, as `peft train` writes it."""
    summary: Summary
    """Its final figures: losses, tokens, seconds, bytes."""

    def __fspath__(self) -> str:
        return str(self.folder)


class Unwatched(ComparisonWatcher):
    """A watcher of comparisons that says nothing."""

    def began(self, run: EntryRun, position: int, count: int) -> None:
        pass

    def waited(self, run: EntryRun) -> None:
        pass

    def ended(self, run: EntryRun, seconds: float) -> None:
        pass


def train(
    recipe: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    observer: Observer | None = None,
) -> TrainedRun:
    """Train a recipe into the folder `output`, as `peft train` does, and return the run.

    Without `output` it goes where the recipe says, or else to `runs/` and the name of its file. `overrides` are
    `key=value` texts, such as `train.max_steps=200` (in a `Recipe` every option of a method is written out, so that a
    rank is `method.lora.rank=16`). `resume` continues from the last checkpoint; a run that is
    finished is returned as it is. `observer` is told of every step: derive from `peftkit.Observer` and define the
    events that you want; what it raises ends the run. Raises PeftkitError for a mistake in the recipe, the data or
    the folder, and `peftkit.training.Interrupted`, after a checkpoint, on Ctrl-C.
    """
    chosen = _recipe(recipe, overrides)
    folder = _folder(recipe, chosen, output, "runs/{}")
    return TrainedRun(folder, train_recipe(chosen, folder, resume=resume, observer=observer))


def evaluate(
    target: Source,
    *,
    overrides: Sequence[str] = (),
    split: str | None = None,
    limit: int | None = None,
    base: bool = False,
    suite: str | None = None,
    suite_path: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Score a run, or a recipe's untrained model, as `peft eval` does, and return what it writes to `eval/`.

    `target` is a run (its folder, or what `train` returned), another library's adapter folder or its id on the hub, or
    a recipe. `overrides` are `key=value` texts; of a run, those of the sections `eval` and `generation`. `split` is
    `train`, `validation` or `test` (the recipe's by default), `limit` a number of inputs. `base` leaves the adapter of
    a run off. `suite` runs tasks of lm-eval instead (`lm-eval:arc_easy,mmlu`), with those in `suite_path` beside them,
    or looks at long texts (`long-context:2048`). `trust_remote_code` agrees to the Python code that the model of a run
    brings along. `on_progress` receives (answers so far, all).

    The report has `scores` by name, and in `unavailable` the reason for each that is missing. Raises PeftkitError for
    a run without an adapter, a split that is not there, and a limit below 1.
    """
    run = _run(target)
    subject: Path | Recipe = _recipe(target, overrides) if run is None else run
    asked: Sequence[str] = ()
    if run is not None:
        run, asked = as_run(run, overrides)
        subject = run
    if run is not None and trust_remote_code:
        agree(run)
    if suite is None:
        if suite_path is not None:
            raise PeftkitError(f"suite_path is {suite_path} without suite, which names the tasks in it to run.")
        return evaluate_subject(subject, asked, split=split, limit=limit, base=base, on_progress=on_progress)
    if split is not None:
        raise PeftkitError(f"split is '{split}', and a task of a suite has its own split: leave it out.")
    folder = None if suite_path is None else Path(suite_path)
    return suites.evaluate(subject, suite, asked, folder=folder, limit=limit, base=base)


def compare(
    recipe: Source,
    output: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    methods: str | Sequence[str] | None = None,
    budget: float | None = None,
    seeds: int | None = None,
    watcher: ComparisonWatcher | None = None,
) -> Comparison:
    """Train and score several methods on the same data, as `peft compare` does, and return the comparison.

    `overrides` are `key=value` texts. `methods` are names (`a+b` is a combination) or `all`, `budget` the stored
    numbers that each may take, `seeds` the runs of each; all three replace the recipe's. It goes to `output`, or where
    the recipe says, or else to `runs/compare-` and the name of its file, and goes on there when it is called again.
    `watcher` is told of each run that begins and ends. Raises PeftkitError for a mistake in the recipe, and
    `peftkit.comparison.ComparisonStopped` on Ctrl-C.
    """
    names = [methods] if isinstance(methods, str) else methods
    given = {"methods": None if names is None else f"[{', '.join(names)}]", "budget": budget, "seeds": seeds}
    options = [f"compare.{key}={value}" for key, value in given.items() if value is not None]
    chosen = _recipe(recipe, [*overrides, *options])
    return compare_recipe(chosen, _folder(recipe, chosen, output, "runs/compare-{}"), watcher or Unwatched())


def load(
    run: str | os.PathLike[str], *, overrides: Sequence[str] = (), base: bool = False, trust_remote_code: bool = False
) -> ModelAndTokenizer:
    """Return the adapted model of a run and its tokenizer, ready for transformers' `generate` and pipelines.

    `run` may be another library's adapter folder, of which `overrides` name the base (`model=NAME`) where it does not.

    The adapter is in the weights where that is exact, and runs beside them elsewhere. `generate` stops where the run's
    answers end and takes the recipe's `generation` as its defaults, prompts are padded on the left, and rows of a soft
    prompt are put in front of each prompt. A run that was trained without a chat template gets one that writes texts as
    it read them. Where adapters are chosen by a key, `generate` takes `key`: one, or a list of one for each prompt.
    `base` leaves the adapter off. `trust_remote_code` agrees to the Python code that the model brings along.
    Raises PeftkitError for what is no finished run, damaged files, and an objective that answers without text.
    """
    place, _ = as_run(Path(run), overrides)
    if trust_remote_code:
        agree(place)
    subject = prepare(read_run(place, adapter=not base), None if base else place / "adapter")
    _settle(subject)
    return subject.model, subject.tokenizer


def _settle(subject: Assembled) -> None:
    """Have the model and the tokenizer of a run generate by themselves as the run's own commands do."""
    model, tokenizer, template, recipe = subject.model, subject.tokenizer, subject.template, subject.recipe
    task = TASKS[recipe.dataset.name.removeprefix(PREFIX)]
    settings = settings_for(model, tokenizer, task, template, recipe.generation)
    model.generation_config.update(**settings.for_transformers(), pad_token_id=tokenizer.pad_token_id)
    tokenizer.padding_side = "left"
    if subject.attached is not None and subject.attached.context.reads_prompts:
        tell_prompts(model)
    if template.keys is not None:
        take_keys(model, template.keys)
    if template.soft:
        opening = template.render_prompt((Turn("user", "a"),), tokenizer).opening
        put_in_front(model, template.soft, opening[0] if opening else None)
    written = template.for_transformers(tokenizer)
    if written is not None:
        tokenizer.chat_template = written


def _recipe(source: Source, overrides: Sequence[str]) -> Recipe:
    """Return the recipe that is meant; PeftkitError for every mistake in it."""
    if isinstance(source, Recipe):
        return Recipe.load(source.resolved(), overrides) if overrides else source
    return Recipe.load(source if isinstance(source, Mapping) else os.fspath(source), overrides)


def _run(target: Source) -> Path | None:
    """Return the folder of a run where the target is one."""
    if isinstance(target, Recipe | Mapping):
        return None
    if Path(target).is_dir():
        return Path(target)
    try:
        find(os.fspath(target))
    except PeftkitError as error:
        return published_instead(os.fspath(target), error)
    return None


def _folder(source: Source, recipe: Recipe, output: str | os.PathLike[str] | None, pattern: str) -> Path:
    """Return where results go: `output`, else what the recipe says, else a folder with the name of its file."""
    if output is not None or recipe.output is not None:
        return Path(output or str(recipe.output))
    if isinstance(source, Recipe | Mapping):
        raise PeftkitError("output is missing: a recipe that is no file has no name for its folder; give output.")
    return Path(pattern.format(Path(source).stem))
