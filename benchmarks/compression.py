"""What pruning and packing cost a real model in perplexity, by how the weights are chosen, and what LoRA gives back.

    python benchmarks/compression.py [--model smollm2-135m] [--data ../shared/data/gsm8k] [--steps 40] [--bases NAME …]

Every base is the same model, pruned or packed before anything is trained. It is measured on GSM8K as plain text, a
problem and its solution one document cut at 128 tokens: the perplexity of 64 test documents before training, and, of
the dense and the pruned bases, after `--steps` steps of 4 training documents with LoRA of rank 8 on all linear maps.
What looks at activations is shown 64 training documents. Rows go to docs/results/compression.csv as they end; one that
is there already is not run twice.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from tuning import RECIPES, RESULTS, add, read

from peftkit.data.batches import Batches
from peftkit.recipe import load
from peftkit.training.preparation import Prepared, prepare

BASES = {
    "dense": (),
    "magnitude 50 %": ("pruning={magnitude: {sparsity: 0.5}}",),
    "wanda 50 %": ("pruning={wanda: {sparsity: 0.5}}",),
    "magnitude 2:4": ('pruning={magnitude: {pattern: "2:4"}}',),
    "wanda 2:4": ('pruning={wanda: {pattern: "2:4"}}',),
    "int4": ("quantization=int4",),
    "awq, 4 bits": ("quantization=awq",),
    "gptq, 4 bits": ("quantization=gptq",),
    "int3": ("quantization=int3",),
    "awq, 3 bits": ("quantization={format: awq, bits: 3}",),
    "gptq, 3 bits": ("quantization={format: gptq, bits: 3}",),
}
"""What the table compares, as choices of a recipe."""
COLUMNS = ("model", "base", "loss", "perplexity", "trained_loss", "trained_perplexity")
MEASURED = 64
"""Documents of the validation split that are measured."""


def documents(source: Path, folder: Path) -> None:
    """Write the problems of GSM8K with their solutions as documents, a file for each split."""
    for split, name in (("train", "train.jsonl"), ("validation", "test.jsonl")):
        rows = map(json.loads, (source / name).read_text(encoding="utf-8").split("\n")[:-1])
        lines = (json.dumps({"text": f"{row['question']}\n{row['answer']}"}) for row in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepared_on(model: str, folder: Path, steps: int, base: tuple[str, ...]) -> Prepared:
    """Return a run of LoRA on one base that is ready for its first step."""
    data = [
        f"dataset={{name: text, path: {folder}}}",
        "train.max_length=128",
        "train.batch_examples=4",
        "train.epochs=null",
    ]
    looks = any(word in choice for choice in base for word in ("pruning", "awq", "gptq"))
    shown = ["calibration.samples=64"] if looks else []
    return prepare(
        load(str(RECIPES / "real.yaml"), [f"model={model}", *data, *shown, f"train.max_steps={steps}", *base])
    )


def validation_loss(prepared: Prepared) -> float:
    """Return the loss on documents that lie evenly over the validation split."""
    assert prepared.validation is not None
    rows = prepared.validation.encoded
    step = max(1, len(rows) // MEASURED)
    return prepared.loop.evaluate(Batches(rows[::step][:MEASURED], batch_examples=8)).loss


def trained(prepared: Prepared) -> float:
    """Train, and return the validation loss."""
    for _ in range(prepared.loop.steps):
        prepared.loop.run_step()
    return validation_loss(prepared)


def told(loss: float) -> tuple[float, float]:
    """Return a loss and its perplexity."""
    return loss, math.exp(loss)


def main(arguments: list[str] | None = None) -> int:
    """Measure the bases that the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES), metavar="NAME")
    chosen = parser.parse_args(arguments)
    file = RESULTS / "compression.csv"
    there = {row["base"] for row in read(file, chosen.model)}
    with tempfile.TemporaryDirectory() as folder:
        documents(chosen.data, Path(folder))
        for name in chosen.bases:
            if name in there:
                continue
            prepared = prepared_on(chosen.model, Path(folder), chosen.steps, BASES[name])
            # LoRA starts at zero: until the first step this is the base.
            before = validation_loss(prepared)
            after = math.nan if any("quantization" in choice for choice in BASES[name]) else trained(prepared)
            figures = ["" if math.isnan(value) else f"{value:.4f}" for loss in (before, after) for value in told(loss)]
            add(file, COLUMNS, (chosen.model, name, *figures))
            print(f"{name:<16}" + "".join(f"{figure:>12}" for figure in figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
