"""Run the same recipes with this checkout and another, and compare what they leave: `--against FOLDER`.

Losses, gradient norms, adapters, resumed runs, predictions and merged weights are compared bit for bit, on the bundled
model in fp32 with one thread:

    python tools/same_results.py --against ../before --methods lora,prefix-tuning --formats none,nf4
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
METHODS = "lora,dora,ia3,prefix-tuning,serial-adapter"
FORMATS = "none,nf4"
STEPS, STOPPED = 6, 3
"""Steps of a run, and the one after which it is stopped and resumed."""
COMPARED = ("step", "loss", "lr", "grad_norm", "tokens", "trained_tokens", "validation_loss")


def peft(checkout: Path, *arguments: str) -> None:
    """Run a command of a checkout; SystemExit with its output where it fails."""
    paths = os.pathsep.join(str(checkout / name) for name in ("core", "cli"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PEFTKIT_METEOR": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "peftkit_cli", *arguments], env=environment, capture_output=True, text=True, cwd=checkout
    )
    if done.returncode:
        sys.exit(f"{checkout.name}: peft {' '.join(arguments)}\n{done.stdout}{done.stderr}")


def results(checkout: Path, folder: Path, method: str, storage: str) -> dict[str, object]:
    """Train, resume, score and merge in `folder`; return what is compared, by what it is."""
    recipe, run, resumed = folder / "recipe.yaml", folder / "run", folder / "resumed"
    recipe.write_text(
        f"model: bundled/tiny\nmethod: {method}\nquantization: {storage}\n"
        "dataset: {name: bundled/e2e, limit: 96}\neval: {limit: 8}\n"
        f"train: {{max_steps: {STEPS}, save_every: {STOPPED}, keep_checkpoints: 9, batch_examples: 8, accumulation: 2, "
        f"seed: 3, device: cpu, precision: fp32, evaluate_every: {STOPPED}}}\n",
        encoding="utf-8",
    )
    peft(checkout, "train", str(recipe), "--output", str(run))
    shutil.copytree(run, resumed, ignore=shutil.ignore_patterns(f"step-*{STEPS}", "adapter", "summary.json"))
    lines = (run / "log.jsonl").read_text(encoding="utf-8").split("\n")[:STOPPED]
    (resumed / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    peft(checkout, "train", str(recipe), "--resume", "--output", str(resumed))
    peft(checkout, "eval", str(run))
    kept: dict[str, object] = {}
    for place in (run, resumed):
        records = [json.loads(line) for line in (place / "log.jsonl").read_text(encoding="utf-8").split("\n") if line]
        kept[f"{place.name}: losses"] = [{key: record.get(key) for key in COMPARED} for record in records]
        kept[f"{place.name}: adapter"] = (place / "adapter" / "adapter.safetensors").read_bytes()
    for path in sorted(run.rglob("*predictions*")):
        if path.is_file():
            kept[f"eval: {path.relative_to(run)}"] = path.read_bytes()
    return kept


def main() -> int:
    """Compare all cases; returns how many differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of the project")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--formats", default=FORMATS)
    given = parser.parse_args()
    wrong = 0
    for method in given.methods.split(","):
        for storage in given.formats.split(","):
            with tempfile.TemporaryDirectory() as folder:
                sides = []
                for name, checkout in (("here", HERE), ("there", given.against.resolve())):
                    (Path(folder) / name).mkdir()
                    sides.append(results(checkout, Path(folder) / name, method, storage))
            apart = sorted(key for key in {*sides[0], *sides[1]} if sides[0].get(key) != sides[1].get(key))
            wrong += bool(apart)
            print(
                f"{method} on {storage}: {', '.join(apart) + ' differ' if apart else f'{len(sides[0])} results equal'}"
            )
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main()))
