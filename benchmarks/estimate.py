"""The memory that `peft estimate` predicts beside what the same run then takes, for three models and several recipes.

Run it as `python benchmarks/estimate.py [--models NAMES] [--cases NAMES] [--csv FILE]`. Each prediction and each run
is a process of its own, started as a user starts it (`peft estimate`, `peft train`), on random weights written to a
temporary folder. What is measured is the highest resident size of the process (VmHWM, read at its end), and, in
`mapped_MB`, that of a second run in which the C library maps every block from 64 KiB on alone
(MALLOC_MMAP_THRESHOLD_=65536), so that nothing which is free is held: that is the memory the estimate counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TINY = "bundled/tiny"
SIZES = {"60M": (512, 8), "350M": (1024, 24)}
"""Width and layers of the random Llamas; a head is 64 wide, and the vocabulary has 32,000 tokens."""
CASES: dict[str, tuple[str, ...]] = {
    "lora": ("rank=8",),
    "lora bf16": ("rank=8", "train.precision=bf16"),
    "qlora": ("rank=8", "quantization=nf4"),
    "lora checkpointing": ("rank=8", "train.gradient_checkpointing=true"),
}
"""What each case sets in the recipe."""
BATCH = ("train.max_steps=3", "train.batch_examples=2", "train.max_length=64", "train.device=cpu")
THREADS = "1"

CHILD = """
import json, runpy, sys
from pathlib import Path
target, sys.argv = sys.argv[1], ["peft", *sys.argv[2:]]
try:
    runpy.run_module("peftkit_cli", run_name="__main__")
except SystemExit as left:
    if left.code:
        raise
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
Path(target).write_text(json.dumps(1024 * peak))
"""
"""Runs `peft` with the arguments after the first, and writes its highest resident size in bytes to the file named."""


def write_model(folder: Path, name: str) -> str:
    """Write a random Llama with the bundled tokenizer to disk; returns what a recipe calls it."""
    if name == "tiny":
        return TINY
    from peftkit.models.load import load
    from peftkit.models.quiet import quiet
    from peftkit.recipe import ModelSection

    width, layers = SIZES[name]
    heads = width // 64
    init = {"architecture": "llama", "hidden_size": width, "num_hidden_layers": layers, "vocab_size": 32000}
    init |= {"intermediate_size": width * 11 // 4, "num_attention_heads": heads, "num_key_value_heads": heads}
    loaded = load(ModelSection(init=init, tokenizer=TINY))
    with quiet():
        loaded.model.save_pretrained(folder / name)
        loaded.tokenizer.save_pretrained(folder / name)
    return str(folder / name)


def write_recipe(folder: Path, model: str) -> Path:
    """Write texts that are longer than a row, and the recipe that all cases start from."""
    draw, words = random.Random(0), ["the", "a", "cat", "dog", "runs", "sees", "big", "small", "house", "tree"]
    rows = [{"prompt": "tell me", "completion": " ".join(draw.choices(words, k=200))} for _ in range(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"name": "jsonl", "path": str(folder / "train.jsonl")}
    # JSON is YAML.
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"model": model, "method": "lora", "dataset": data}), encoding="utf-8")
    return path


def peft(folder: Path, *arguments: str, **environment: str) -> tuple[str, int]:
    """Run the command in a process of its own; returns what it printed and its highest resident size in bytes."""
    paths = os.pathsep.join((str(ROOT / "core"), str(ROOT / "cli")))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    inherited |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": THREADS, "PEFTKIT_CACHE": str(folder / "cache")}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        target = Path(place) / "peak.json"
        command = [sys.executable, "-c", CHILD, str(target), *arguments]
        done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, cwd=place)
        if done.returncode:
            raise SystemExit(f"peft {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout, json.loads(target.read_text())


def compare(folder: Path, model: str, case: str) -> dict[str, Any]:
    """Predict and measure one case; sizes are in millions of bytes."""
    recipe = str(write_recipe(folder, model))
    options = (*CASES[case], *BATCH)
    predicted = json.loads(peft(folder, "estimate", recipe, *options, "--json")[0])
    measured = []
    for environment in ({}, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        output = str(Path(tempfile.mkdtemp(dir=folder)) / "run")
        measured.append(peft(folder, "train", recipe, *options, "--output", output, **environment)[1])
    parts = {f"{name}_MB": round(part["at_peak"] / 1e6, 1) for name, part in predicted["parts"].items()}
    return {
        "predicted_MB": round(predicted["peak_bytes"] / 1e6, 1),
        "measured_MB": round(measured[0] / 1e6, 1),
        "ratio": round(predicted["peak_bytes"] / measured[0], 3),
        "mapped_MB": round(measured[1] / 1e6, 1),
        "mapped_ratio": round(predicted["peak_bytes"] / measured[1], 3),
        "peak_in": predicted["peak_in"],
        **parts,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each model and case, and write them where `--csv` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(("tiny", *SIZES)), help="names, with commas between them")
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas between them")
    parser.add_argument("--csv", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for name in chosen.models.split(","):
            model = write_model(Path(place), name)
            for case in chosen.cases.split(","):
                rows.append({"model": name, "case": case, **compare(Path(place), model, case)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if chosen.csv:
        with chosen.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "core")]
    sys.exit(main())
