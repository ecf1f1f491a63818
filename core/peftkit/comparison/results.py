"""What a comparison came to: the figures of each entry, read from its run folders."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from peftkit.adaptation import TENSORS
from peftkit.comparison.entries import Entry
from peftkit.comparison.runs import EntryRun
from peftkit.recipe import Recipe
from peftkit.report.results import ComparedEntry, Comparison, Spread
from peftkit.tasks import TASKS
from peftkit.tensor_file import TensorFile
from peftkit.training import log, summary

WARM = 3
"""First steps of a run that do not count for its step time: memory is taken and caches are filled there."""


def read(recipe: Recipe, entries: Sequence[Entry], runs: Sequence[EntryRun]) -> Comparison:
    """Read the run folders into a Comparison; unfinished runs leave entries without figures."""
    task = TASKS[recipe.dataset.name.rpartition("/")[2]]
    base = next(run for run in runs if run.entry is None)
    report = base.report
    scores = report["scores"] if report else {}
    headline = task.headline or next(iter(scores), "score")
    compared = [_compared(entry, [run for run in runs if run.entry is entry]) for entry in entries]
    compared.sort(key=lambda entry: -entry.scores[headline].mean if entry.scores else float("inf"))
    own = [choice.model_dump() for choice in recipe.method]
    mine = (e.label for e in entries if [{"name": m.name, "options": m.options()} for m in e.methods] == own)
    labels = [entry.label for entry in compared if entry.scores]
    reference = next((label for label in mine if label in labels), labels[0] if labels else "")
    return Comparison(
        title=f"{len(entries)} methods on {recipe.dataset.name}",
        setup=_setup(recipe, runs, report or {}),
        headline=headline,
        base=ComparedEntry("base", scores={key: Spread.of([value]) for key, value in scores.items()}),
        entries=tuple(compared),
        reference=reference,
    )


def _compared(entry: Entry, runs: Sequence[EntryRun]) -> ComparedEntry:
    done = [run for run in runs if run.finished]
    reasons = [entry.refused] if entry.refused else []
    reasons += [f"{run.label}: {run.failure or 'not run yet'}" for run in runs if not run.finished]
    reason = "; ".join(reasons) or None
    if not done:
        return ComparedEntry(entry.label, entry.note, reason=reason)
    reports = [run.report or {} for run in done]
    summaries = [summary.read_told(run.folder / "summary.json") for run in done]
    logs = [log.read(run.folder / "log.jsonl", log.WholeStepRecord) for run in done]
    adapter = TensorFile(done[0].folder / "adapter" / TENSORS)
    losses = [one["losses"]["validation"] for one in summaries]
    times = [r["tokens"] / r["tokens_per_s"] for records in logs for r in records[WARM:] if r["tokens_per_s"]]
    return ComparedEntry(
        label=entry.label,
        note=entry.note,
        trainable=summaries[0]["trainable_parameters"],
        stored=sum(math.prod(adapter.shape(name)) for name in adapter.names),
        scores={
            key: Spread.of([report["scores"][key] for report in reports])
            for key in reports[0]["scores"]
            # A metric may have been unavailable where one of the runs was scored.
            if all(key in report["scores"] for report in reports)
        },
        validation=Spread.of(losses) if None not in losses else None,
        step_s=statistics.median(times) if times else None,
        memory=max(one["peak_memory_bytes"] for one in summaries),
        steps=tuple(record["step"] for record in logs[0]),
        losses=tuple(statistics.fmean(r["loss"] for r in same) for same in zip(*logs, strict=False)),
        reason=reason,
    )


def order(runs: Sequence[EntryRun]) -> str:
    """Say whether the runs of each seed (and part of the data) saw the same texts in every step.

    Their logs tell it, which count the trained tokens.
    """
    batches: dict[tuple[int, float], set[tuple[int, ...]]] = {}
    for run in runs:
        if run.entry and run.finished:
            counts = tuple(
                record["trained_tokens"] for record in log.read(run.folder / "log.jsonl", log.WholeStepRecord)
            )
            batches.setdefault((run.recipe.train.seed, run.recipe.dataset.fraction), set()).add(counts)
    if all(len(same) == 1 for same in batches.values()):
        return "the same data in the same order"
    return "the same data in other batches, since prompts take room in train.batch_tokens: set train.batch_examples"


def _setup(recipe: Recipe, runs: Sequence[EntryRun], report: dict[str, Any]) -> dict[str, str]:
    summaries = [run.folder / "summary.json" for run in runs if run.entry and run.finished]
    told = summary.read_told(summaries[0]) if summaries else {}
    rate = recipe.train.learning_rate
    budget = recipe.compare.budget
    setup = {
        "model": recipe.model.name or f"{(recipe.model.init or {}).get('architecture')}, random weights",
        "training": f"{told.get('steps', 0):,} steps of about "
        f"{round(told.get('tokens', 0) / max(1, told.get('steps', 1))):,} tokens, {order(runs)}",
        "learning rate": "each method's own" if rate is None else f"{rate:g}",
        "seeds": str(recipe.compare.seeds),
        "evaluation": f"{report.get('examples', 0):,} inputs of the {recipe.eval.split} split",
        "budget": f"{budget:,.0f} stored parameters" if budget else "each method's own size",
        "device": f"{told.get('device', '')}, {told.get('precision', '')}",
    }
    versions = ", ".join(f"{name} {version}" for name, version in told.get("versions", {}).items())
    missing = {key: f"not available: {reason}" for key, reason in report.get("unavailable", {}).items()}
    return {**setup, **missing, "versions": versions}
