"""The learning rate that suits each method, searched with the same number of trials for every one, model by model.

    python benchmarks/tuning.py [METHOD …] [--model smollm2-135m | FILE.gguf] [--data FOLDER] [--start R] [--defaults]

Without names it goes over every registered method on the bundled model. A trial trains for 100 steps on bundled/e2e (a
real model: 60 steps of 8 examples of E2E, from `--data` with the official files) and measures the loss on the
validation split; a method that needs a storage has the first of the formats that offer it. The search climbs: it begins
at 1e-2, or the rate of `--start` (a real model: at what the method takes by default there), tries the neighbours, moves
towards the lower loss, and spends what is left between the best rate and its better neighbour. Trials go to
docs/results/tuning.csv as they end, and one that is there already is not run twice, so that the search can be stopped
and continued. `--defaults` runs one trial of 40 steps at each method's default instead, into docs/results/defaults.csv,
beside the loss of the model alone.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from peftkit.data.batches import Batches
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.quantization.quantizer import formats
from peftkit.recipe import Recipe, load
from peftkit.training.preparation import Prepared, prepare

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "recipes"
RESULTS = ROOT / "docs" / "results"
BUNDLED = "bundled/tiny"
TRIALS = 6
START = -2.0
HALF, QUARTER = 0.5, 0.25
"""Steps of the search in powers of ten: the first walk, and the refinement."""
MEASURED = 64
"""Validation examples whose loss a trial on a real model ends with."""
COLUMNS = ("model", "method", "exponent", "learning_rate", "validation_loss")
DEFAULTS = ("model", "method", "learning_rate", "validation_loss")
BASE = "(base)"


@dataclass(frozen=True)
class Work:
    """A model and what trials on it train on."""

    name: str
    """As the tables call it: the model's name, or its file's without the ending."""
    recipe: Path
    choices: tuple[str, ...]
    """What a trial chooses beside the method and the rate."""
    steps: int
    measured: int | None
    """Validation examples of a trial; None: all that a run measures."""

    def read(self, method: str, *more: str) -> Recipe:
        """Return the recipe of one method at its default options."""
        needs = METHODS[method].needs
        stored = [] if needs is None else [f"quantization={formats(needs)[0]}"]
        return load(str(self.recipe), ["rank=null", f"method={method}", *stored, *self.choices, *more])


def work_on(model: str, data: Path | None) -> Work:
    """Return the work of trials on a model: the quick start's on the bundled one, that of `make real` on others."""
    if model == BUNDLED:
        return Work(BUNDLED, RECIPES / "quickstart.yaml", (), 100, None)
    choices = [f"model={model}"]
    if data is not None:
        choices += ["dataset.name=e2e", f"dataset.path={data}", "dataset.limit=2000"]
    return Work(Path(model).stem, RECIPES / "real.yaml", tuple(choices), 60, MEASURED)


def prepared_for(work: Work, method: str, steps: int, learning_rate: float | None) -> Prepared:
    """Return a run that is ready for its first step; the method's own rate where none is given."""
    rate = "null" if learning_rate is None else str(learning_rate)
    more = [f"train.max_steps={steps}", "train.epochs=null", f"train.learning_rate={rate}"]
    return prepare(work.read(method, *more))


def loss_of(prepared: Prepared, measured: int | None) -> float:
    """Return the loss on the validation split, or on so many examples spread evenly over it."""
    batches = prepared.validation
    assert batches is not None
    if measured is not None:
        rows = batches.encoded
        step = max(1, len(rows) // measured)
        batches = Batches(rows[::step][:measured], batch_examples=8)
    return prepared.loop.evaluate(batches).loss


def loss_at(work: Work, method: str, learning_rate: float) -> float:
    """Return the validation loss after training at a rate; infinity where the training broke down."""
    prepared = prepared_for(work, method, work.steps, learning_rate)
    try:
        for _ in range(prepared.loop.steps):
            prepared.loop.run_step()
        value = loss_of(prepared, work.measured)
    except PeftkitError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def rate(exponent: float) -> float:
    """Return 10^exponent with two significant digits."""
    return float(f"{10**exponent:.1e}")


def beginning(work: Work, method: str, named: float | None) -> float:
    """Return the exponent of the first trial: that `named`, an eighth near the default of a real model, or 1e-2's."""
    if named is not None:
        return round(8 * math.log10(named)) / 8
    if work.name == BUNDLED:
        return START
    return round(8 * math.log10(default_rate(prepared_for(work, method, 1, None)))) / 8


def default_rate(prepared: Prepared) -> float:
    """Return the rate that a method takes where none is given; the first of a combination's."""
    return prepared.loop.peaks[0]


def following(known: dict[float, float], start: float) -> float:
    """Return the exponent of the next trial, given the losses at those already run."""
    if not known:
        return start
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


def read(file: Path, model: str) -> list[dict[str, str]]:
    """Return the rows of a table that concern a model; none where the file is not there."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [row for row in csv.DictReader(opened) if row["model"] == model]


def add(file: Path, columns: Sequence[str], row: Sequence[str | float]) -> None:
    """Add a row to a table, with its head where the file is new."""
    new = not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        if new:
            writer.writerow(columns)
        writer.writerow(row)


def search(work: Work, method: str, named: float | None = None) -> None:
    """Run the trials that are still wanted and add each to the file."""
    file = RESULTS / "tuning.csv"
    rows = [row for row in read(file, work.name) if row["method"] == method]
    known = {float(row["exponent"]): float(row["validation_loss"]) for row in rows}
    start = beginning(work, method, named) if not known else START
    while len(known) < TRIALS:
        exponent = following(known, start)
        known[exponent] = loss_at(work, method, rate(exponent))
        add(file, COLUMNS, (work.name, method, exponent, f"{rate(exponent):g}", f"{known[exponent]:.4f}"))
        print(f"{method:<26}{rate(exponent):<10g}{known[exponent]:.4f}", flush=True)


def at_default(work: Work, method: str) -> None:
    """Train for 40 steps at the default rate, and add the loss afterwards to the file."""
    file = RESULTS / "defaults.csv"
    if any(row["method"] == method for row in read(file, work.name)):
        return
    prepared = prepared_for(work, method, 40, None)
    used = default_rate(prepared)
    for _ in range(prepared.loop.steps):
        prepared.loop.run_step()
    told(file, work, method, used, loss_of(prepared, MEASURED))


def base(work: Work) -> None:
    """Add the loss of the model as it is to the file of defaults."""
    file = RESULTS / "defaults.csv"
    if not any(row["method"] == BASE for row in read(file, work.name)):
        # What LoRA starts as is the base.
        told(file, work, BASE, 0.0, loss_of(prepared_for(work, "lora", 1, None), MEASURED))


def told(file: Path, work: Work, method: str, used: float, loss: float) -> None:
    """Add a row to the file of defaults, and print it."""
    add(file, DEFAULTS, (work.name, method, f"{used:.3g}", f"{loss:.4f}"))
    print(f"{method:<26}{used:<10.3g}{loss:.4f}", flush=True)


def main() -> int:
    """Search for each method; those that the model does not suit are named and left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--model", default=BUNDLED, help="a model of a recipe")
    parser.add_argument("--data", type=Path, help="the folder of E2E's official files, for a real model")
    parser.add_argument("--start", type=float, metavar="R", help="the rate of the first trial of each")
    parser.add_argument("--defaults", action="store_true", help="one trial at each default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = work_on(given.model, given.data)
    if given.defaults:
        base(work)
    for method in given.methods or METHODS.names():
        try:
            if given.defaults:
                at_default(work, method)
            else:
                search(work, method, given.start)
        except PeftkitError as error:
            print(f"{method:<26}left out: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
