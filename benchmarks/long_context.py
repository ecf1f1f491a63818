"""A real model beyond its positions: without interpolation, with it, and after a short training with it.

`python benchmarks/long_context.py [--steps 40] [--threads 1]`. SmolLM2-135M knows 8,192 positions. Its slowest angles
are made 64 times as quick (the base of the angles lowered, as `rope_type: ntk` raises it), so that they leave what was
trained soon after 512: that is the model which is extended to 1,024 by `model.rope_factor: 2`. The texts are modules of
Python's standard library, of which those that are scored are not trained on.
"""

from __future__ import annotations

import argparse
import csv
import json
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from peftkit import suites
from peftkit.models.load import load as load_model
from peftkit.recipe import load as load_recipe
from peftkit.training import train

MODEL, SHORT, LONG, QUICKER, SIZE = "smollm2-135m", 512, 1024, 64, 64
"""The model, its positions before and after, how many times as quick its slowest angle is, the size of a head."""
SCORED = ("argparse.py", "_pydecimal.py", "typing.py", "tarfile.py")
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "long_context.csv"
RATE = 5e-4


def cut(folder: Path) -> None:
    """Write the model with fewer positions: the base b of its angles becomes b / 64^(d / (d - 2))."""
    loaded = load_model(load_recipe({"model": {"name": MODEL, "dtype": "bfloat16"}, **PLAIN}).model)
    model: Any = loaded.model
    rotary = model.config.rope_parameters
    model.config.rope_parameters = {**rotary, "rope_theta": rotary["rope_theta"] / QUICKER ** (SIZE / (SIZE - 2))}
    model.config.max_position_embeddings = SHORT
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


PLAIN = {"method": "lora", "dataset": "bundled/e2e"}


def texts(folder: Path, tokenizer: Any) -> None:
    """Write documents of about as many tokens as a window for training, and the text that is scored."""
    library = Path(sysconfig.get_paths()["stdlib"])
    parts = []
    for path in sorted(library.glob("*.py")):
        ids = [] if path.name in SCORED else tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
        parts += [tokenizer.decode(ids[at : at + LONG - 8]) for at in range(0, len(ids) - LONG, LONG - 8)]
    folder.mkdir()
    for name, chosen in (("train", parts[8:]), ("validation", parts[:8])):
        lines = [json.dumps({"text": text}) for text in chosen]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    scored = [(library / name).read_text(encoding="utf-8") for name in SCORED]
    (folder / "scored.txt").write_text("\n\n".join(scored), encoding="utf-8")


def recipe(folder: Path, factor: int, method: Any, steps: int) -> Any:
    """Return the recipe of one arm."""
    return load_recipe(
        {
            "model": {"name": str(folder / "model"), "rope_factor": factor},
            "method": method,
            "dataset": {"name": "text", "path": str(folder / "texts")},
            "train": {
                "max_steps": steps,
                "max_length": LONG,
                "batch_examples": 1,
                "learning_rate": RATE,
                "schedule": "constant",
                "evaluate_every": None,
                "save_every": None,
            },
        }
    )


def arms(folder: Path, steps: int) -> list[tuple[str, Any, bool]]:
    """Return the name, the recipe and whether it is trained of each arm."""
    long = {"longlora": {"group": LONG // 4, "rank": 8}}
    full = {"lora": {"targets": "attention", "rank": 8, "alpha": 16}}
    return [
        ("as it is", recipe(folder, 1, "lora", steps), False),
        ("interpolated", recipe(folder, 2, "lora", steps), False),
        ("interpolated, longlora", recipe(folder, 2, long, steps), True),
        ("interpolated, lora", recipe(folder, 2, full, steps), True),
    ]


def main() -> None:
    """Score every arm and write the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--limit", type=int, default=4, help="windows, and keys at each depth")
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        cut(folder / "model")
        loaded = load_recipe({"model": str(folder / "model"), **PLAIN})
        texts(folder / "texts", load_model(loaded.model).tokenizer)
        for name, chosen, trained in arms(folder, given.steps):
            began = time.monotonic()
            if trained:
                train(chosen, folder / name.replace(", ", "-"))
            spent = time.monotonic() - began
            target = folder / name.replace(", ", "-") if trained else chosen
            suite = f"long-context:{SHORT},{LONG}"
            report = suites.evaluate(target, suite, folder=folder / "texts" / "scored.txt", limit=given.limit)
            for score in report["scores"]:
                value = "" if score["value"] is None else round(score["value"], 3)
                steps = given.steps if trained else 0
                rows.append([name, steps, score["task"], score["metric"], value, score["inputs"], round(spent)])
                print(*rows[-1], sep="  ", flush=True)
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        head = ["model", "steps", "task", "metric", "value", "inputs", "training_s"]
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


if __name__ == "__main__":
    main()
