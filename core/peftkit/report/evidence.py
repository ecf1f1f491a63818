"""What run folders hold, for reports: the recipe, the log, the summary, and the evaluation with its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peftkit import suites
from peftkit.assembly import is_imported
from peftkit.errors import PeftkitError
from peftkit.evaluation.stored import read_answers, read_report
from peftkit.recipe import Recipe, load_run
from peftkit.report.labels import describe, written
from peftkit.training import log, summary

SILENT = ("include", "method", "output", "compare", "eval", "generation")
"""Keys of a recipe that no label tells: the method stands in front of each."""
BASE, ANSWERS = "-base", ".predictions.jsonl"
"""Endings of an untrained model's evaluation, and of the file of answers beside it."""


@dataclass(frozen=True)
class Answers:
    """An evaluation: what `eval/*.json` tells, and the record of each input in `eval/*.predictions.jsonl`."""

    facts: dict[str, Any]
    predictions: list[dict[str, Any]]

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the whole set; those of its parts have a stroke in their names."""
        return {name: value for name, value in self.facts["scores"].items() if "/" not in name}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The ids of what was answered."""
        return tuple(record["id"] for record in self.predictions)


@dataclass(frozen=True)
class Evidence:
    """One run."""

    folder: Path
    recipe: Recipe
    label: str
    records: list[dict[str, Any]]
    """The log, a record a step."""
    summary: dict[str, Any] | None
    """The final figures; None where training has not ended."""
    answers: Answers | None
    """The evaluation of the split that the recipe names; None where there is none."""
    suites: list[dict[str, Any]]
    """What `peft eval --suite` wrote, a report a task."""
    base_suites: list[dict[str, Any]]
    """The same of its untrained model."""
    imported: bool = False
    """Whether another library trained it, so that nothing of its training is there."""

    @property
    def state(self) -> str:
        """Say what is missing of it, or nothing."""
        if self.summary is None and not self.imported:
            return f"training has not ended after {len(self.records):,} steps"
        return "" if self.answers else f"not evaluated: peft eval {self.folder}"


def read(given: Sequence[Path]) -> tuple[list[Evidence], list[Answers]]:
    """Read run folders, and the runs of a comparison's folder; returns the runs, and evaluations of untrained bases.

    Raises PeftkitError for a folder that holds no run, and for one that is named twice.
    """
    folders = [run for folder in given for run in _runs(folder)]
    twice = next((run for run in folders if [run.resolve() for run in folders].count(run.resolve()) > 1), None)
    if twice is not None:
        raise PeftkitError(f"the run {twice} is named twice: leave one of them out.")
    runs = [_read(folder) for folder in folders]
    untrained: dict[tuple[Any, ...], Answers] = {}
    for place in dict.fromkeys([*folders, *(folder / "runs" / "base" for folder in given)]):
        for path in (path for path in _evaluations(place) if path.stem.endswith(BASE)):
            answers = _answers(path)
            untrained.setdefault(tuple(answers.facts[key] for key in ("model", "dataset", "split", "limit")), answers)
    return _labelled(runs), list(untrained.values())


def _runs(folder: Path) -> list[Path]:
    """Return the run folder, or the finished and unfinished runs of a comparison in their order."""
    inside = sorted(path.parent for path in (folder / "runs").glob("*/seed-*/recipe.yaml"))
    if inside:
        return inside
    if not (folder / "recipe.yaml").is_file():
        state = "holds no recipe.yaml" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
        raise PeftkitError(f"{folder} is not a run folder: it {state}. Name folders that peft train or compare wrote.")
    return [folder]


def _read(folder: Path) -> Evidence:
    recipe = load_run(folder)
    ended = folder / "summary.json"
    return Evidence(
        folder=folder,
        recipe=recipe,
        label=" + ".join(describe(method) for method in recipe.methods()),
        records=log.read(folder / "log.jsonl", log.LossRecord),
        summary=summary.read_told(ended) if ended.is_file() else None,
        answers=_chosen(folder, recipe),
        suites=suites.read(folder),
        base_suites=suites.read(folder, base=True),
        imported=is_imported(folder),
    )


def _chosen(folder: Path, recipe: Recipe) -> Answers | None:
    """Return the evaluation of the recipe's split, on as many inputs as the recipe says where there are several."""
    paths = [path for path in _evaluations(folder) if not path.stem.endswith(BASE)]
    evaluations = [answers for answers in map(_answers, paths) if answers.facts["split"] == recipe.eval.split]
    evaluations.sort(key=lambda answers: answers.facts["limit"] != recipe.eval.limit)
    return evaluations[0] if evaluations else None


def _evaluations(folder: Path) -> list[Path]:
    """List the evaluations of a run with answers; other figures may lie beside them."""
    paths = sorted((folder / "eval").glob("*.json"))
    return [path for path in paths if path.with_suffix(ANSWERS).is_file()]


def _answers(path: Path) -> Answers:
    facts = read_report(path)
    return Answers(facts, read_answers(path.with_suffix(ANSWERS), path, facts["examples"]))


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over (dotted key, value) of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _labelled(runs: list[Evidence]) -> list[Evidence]:
    """Add to each label the keys of the recipes that differ, and the folder where that tells runs not apart."""
    settings = [dict(leaves(run.recipe.model_dump(exclude=set(SILENT)))) for run in runs]
    names = list(dict.fromkeys(key for keys in settings for key in keys))
    differ = [key for key in names if len({repr(keys.get(key)) for keys in settings}) > 1]
    labels = [
        ", ".join([run.label, *(f"{key.removeprefix('train.')} {written(keys.get(key))}" for key in differ)])
        for run, keys in zip(runs, settings, strict=True)
    ]
    return [
        replace(run, label=label if labels.count(label) == 1 else f"{label}, {run.folder}")
        for run, label in zip(runs, labels, strict=True)
    ]
