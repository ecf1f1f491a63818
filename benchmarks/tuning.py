"""The learning rate that suits each method, searched on bundled/e2e with the same number of trials for every one.

Run it as `python benchmarks/tuning.py [METHOD …]`; without names it goes over every registered method. A trial trains
the bundled model for 100 steps and measures the loss on the validation split; a method that needs a storage has the
first of the formats that offer it. The search climbs: it begins at 1e-2 for
every method, tries the neighbours, moves towards the lower loss, and spends what is left between the best rate and its
better neighbour. Trials go to docs/results/tuning.csv as they
end, and one that is there already is not run twice, so that the search can be stopped and continued.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import torch

from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.quantization.quantizer import formats
from peftkit.recipe import load
from peftkit.training.preparation import prepare

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
RESULTS = ROOT / "docs" / "results" / "tuning.csv"
TRIALS = 6
STEPS = 100
START = -2.0
HALF, QUARTER = 0.5, 0.25
"""Steps of the search in powers of ten: the first walk, and the refinement."""


def loss_at(method: str, exponent: float) -> float:
    """Return the validation loss after training at the rate 10^exponent; infinity where the training broke down."""
    train = [f"train.max_steps={STEPS}", "train.epochs=null", f"train.learning_rate={rate(exponent)}"]
    needs = METHODS[method].needs
    stored = [] if needs is None else [f"quantization={formats(needs)[0]}"]
    recipe = load(str(RECIPE), ["rank=null", f"method={method}", *stored, *train])
    prepared = prepare(recipe)
    try:
        for _ in range(prepared.loop.steps):
            prepared.loop.run_step()
        assert prepared.validation is not None
        value = prepared.loop.evaluate(prepared.validation).loss
    except PeftkitError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def rate(exponent: float) -> float:
    """Return 10^exponent with two significant digits."""
    return float(f"{10**exponent:.1e}")


def following(known: dict[float, float]) -> float:
    """Return the exponent of the next trial, given the losses at those already run."""
    if not known:
        return START
    best = min(known, key=lambda exponent: known[exponent])
    for step in (HALF, QUARTER, QUARTER / 2):
        sides = [best + step, best - step]
        open_sides = [side for side in sides if side not in known]
        if len(open_sides) == 2 and step != HALF:
            # The minimum lies towards the lower of the two neighbours that the wider walk measured.
            return min(sides, key=lambda side: known.get(best + 2 * (side - best), math.inf))
        if open_sides:
            return open_sides[0]
    raise AssertionError("more trials than the search has places for")


def read() -> dict[str, dict[float, float]]:
    """Return the losses of the trials in the file, by method and exponent."""
    known: dict[str, dict[float, float]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                known.setdefault(row["method"], {})[float(row["exponent"])] = float(row["validation_loss"])
    return known


def search(method: str, known: dict[float, float]) -> None:
    """Run the trials that are still wanted and add each to the file."""
    while len(known) < TRIALS:
        exponent = following(known)
        known[exponent] = loss_at(method, exponent)
        new = not RESULTS.exists()
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(("method", "exponent", "learning_rate", "validation_loss"))
            writer.writerow((method, exponent, f"{rate(exponent):g}", f"{known[exponent]:.4f}"))
        print(f"{method:<26}{rate(exponent):<10g}{known[exponent]:.4f}", flush=True)


def main() -> int:
    """Search for each method; those that the model does not suit are named and left out."""
    torch.set_num_threads(1)
    known = read()
    for method in sys.argv[1:] or METHODS.names():
        try:
            search(method, known.get(method, {}))
        except PeftkitError as error:
            print(f"{method:<26}left out: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
