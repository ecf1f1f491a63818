"""Run folders made by hand: a recipe, a log, a summary and an evaluation, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftkit.recipe import load
from peftkit.tasks import TASKS

TEXTS = ["a red house near the river", "an old stone", "the bird in a green tree", "a large square and a small one"]


def write_run(
    folder: Path,
    predictions: list[str] | None,
    *,
    dataset: str = "e2e",
    finished: bool = True,
    validation: float = 1.0,
    base: bool = False,
    **keys: Any,
) -> Path:
    """Write a run whose answers to the inputs TEXTS, each its own reference, are `predictions`."""
    recipe = {"model": "bundled/tiny", "method": "lora", "dataset": dataset, **keys}
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(load(recipe).to_yaml())
    records = [{"step": n, "loss": 4.0 / n, "validation_loss": validation + 1 / n} for n in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        summary = {"trainable_parameters": 2000, "total_parameters": 10**6, "steps": 5, "tokens": 5000, "wall_s": 2.5}
        more = {"tokens_per_second": 2000.0, "peak_memory_bytes": 3 * 10**8, "losses": {"validation": validation}}
        (folder / "summary.json").write_text(json.dumps({**summary, **more}))
    if predictions is not None:
        write_answers(folder, predictions, dataset, "-base" if base else "")
    return folder


def write_answers(folder: Path, predictions: list[str], dataset: str, ending: str = "", model: str = "bundled/tiny"):
    """Write an evaluation of the test split."""
    scores = TASKS[dataset.rpartition("/")[2]].score_texts(predictions, [[text] for text in TEXTS])
    facts = {"dataset": dataset, "split": "test", "limit": None, "examples": len(TEXTS), "model": model}
    facts |= {"scores": dict(scores), "unfinished": 0, "wall_s": 0.5, "tokens_per_second": 90.0}
    (folder / "eval").mkdir(exist_ok=True)
    path = folder / "eval" / f"{dataset.replace('/', '-')}-test{ending}.json"
    path.write_text(json.dumps(facts))
    lines = [
        {"id": f"input:{n}", "prompt": f"name[{n}]", "prediction": text, "references": [TEXTS[n]], "finished": True}
        for n, text in enumerate(predictions)
    ]
    path.with_suffix(".predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
