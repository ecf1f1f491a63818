"""Training beside the usual stack: tokens per second, step time and peak memory at equal losses.

`python benchmarks/training.py [--profiles e2e,coqa] [--methods lora,dora] [--sizes 60m] [--precision fp32,bf16]`; a
list may be `all`. `--goals` measures the work that has goals and prints them beside what was reached.
`--ablate` measures what each part of the engine is worth: ours with one part after another switched off, beside the
whole (`ablation.py`). The sides:

- `ours`: the training loop of peftkit as a run has it;
- `trainer`: Hugging Face peft with transformers' Trainer and a collator that pads, as a user gets it ("usual");
- `bare`: a plain loop over Hugging Face peft;
- `trl`, `unsloth`: where they are installed;
- `ours-…`: ours without one part of the engine (`sides.PARTS`); `ours-compiled` with `train.compile`, compiled before;
- `own lora`: our LoRA on all linear layers beside another method of ours.

All have the same weights of the model and of the adapter, the same batches in the same order, the same optimizer and
rate. Every step's loss, and the norm of its gradient before clipping, have to agree with the Trainer's within the
tolerance that is printed, else the benchmark ends with an error. Each side is a process; they take turns, and medians
over the turns are shown, ratios as medians of the ratios within a turn. On a CPU the time is what one thread spends on
the processor, so that other work disturbs it little; `--wall --threads N` takes the clock, as on a GPU.

Memory is measured apart on a CPU (`gates.py`): `whole` is the peak of the process, and `above` what came on top of the
loaded model. The limit is the time that the frozen weights' products take at the rate of one such product [512, width]
x [width, inner] (8,192 rows on a GPU), measured in the same run: 4 operations for each weight of the blocks' linear
layers and each token without padding (2 forward, 2 for the gradient of the inputs), the head's at trained positions
alone. Tokens that rows of a batch have in common from their start on count once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import ablation
import torch
from cases import SIZES, TECHNIQUES, Case
from gates import Memory, Rate, Report, time_turns, weigh_sides
from goals import CPU_GOALS, GPU_GOALS, Cell, Goal
from profiles import PROFILES
from rows import USUAL, Row, machine, print_goals, print_rows, print_turns, write_csv
from sides import PARTS, SIDES, available

from peftkit.errors import PeftkitError, unknown

OWN = "lora"
TOLERANCES = {"fp32": (1e-5, 1e-3), "bf16": (5e-3, 5e-2)}
"""The relative differences that rounding explains: of the losses, and of the norms of the gradients."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ROWS_OF_RATE = {"cpu": 512, "cuda": 8192}
"""Rows of the product whose rate the limit is measured by."""


# What is measured ---------------------------------------------------------------------------------------------------


def cases_of(cell: Cell, given: argparse.Namespace) -> list[Case]:
    """List the sides of a cell, and on a CPU our LoRA behind them where the method is another."""
    size, rows = SIZES[cell.size], PROFILES[cell.profile][1]
    case = Case(
        side="ours",
        size=cell.size,
        profile=cell.profile,
        method=cell.method,
        precision=cell.precision,
        dtype=given.weights or DTYPES[cell.precision],
        rows=given.rows or min(rows, size.rows or rows),
        steps=(given.rounds + 1) * given.steps,
        device=given.device,
    )
    cases = [replace(case, side=side) for side in given.sides]
    alone = cell.method == OWN or "ours" not in given.sides or given.device != "cpu"
    return cases if alone else [*cases, replace(case, method=OWN)]


def agree(cases: Sequence[Case], reports: Sequence[Report]) -> str:
    """Compare what the sides of one method report with the first of them that is not ours; say how near they are."""
    method, precision = cases[0].method, cases[0].precision
    bounds = TOLERANCES[precision]
    mine = [(case, report) for case, report in zip(cases, reports, strict=True) if case.method == method]
    reference = next((report for case, report in mine if case.side != "ours"), None)
    if reference is None:
        return "one side alone: no losses are compared"
    worst = [0.0, 0.0]
    technique = cases[0].technique
    steps = slice(None) if technique.alike else slice(1)
    for case, report in mine:
        pairs = ((report.losses, reference.losses), (report.norms, reference.norms))
        for number, (one, other) in enumerate(pairs):
            if number == 1 and not technique.norms:
                continue
            far = max(abs(a - b) / abs(b) for a, b in zip(one[steps], other[steps], strict=True))
            worst[number] = max(worst[number], far)
            if not far <= bounds[number]:
                what = ("losses", "norms of the gradients")[number]
                raise PeftkitError(
                    f"{case.size} {case.profile} {method} {precision}: the {what} of {case.side} are {one[steps]}, and "
                    f"should be {other[steps]} within {bounds[number]:g}: the sides do not train the same."
                )
    count = "steps" if technique.alike else "steps, the first alone compared (the text is moved by the prefix there)"
    norms = f", norms of gradients {worst[1]:.1e} ({bounds[1]:g})" if technique.norms else ""
    return f"losses of {len(reference.losses)} {count}: within {worst[0]:.1e} (at most {bounds[0]:g}){norms}"


def limits(case: Case, steps: int, rate: float) -> list[float]:
    """Return the least seconds a step of each timed turn could take at `rate` operations a second."""
    size, work = case.measures, case.work()
    head = size.width * size.vocabulary
    seconds = [
        4 * (size.linears * work.distinct(batch) + head * work.trained(batch)) / rate for batch in range(case.steps)
    ]
    return [statistics.fmean(seconds[start : start + steps]) for start in range(steps, case.steps, steps)]


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median ratio of what stands at the same place."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def measure(cell: Cell, given: argparse.Namespace) -> list[Row]:
    """Measure all sides of a cell; PeftkitError where they do not train the same."""
    cases = cases_of(cell, given)
    size = SIZES[cell.size]
    dtype = DTYPES[cell.precision]
    rate = Rate(ROWS_OF_RATE[given.device.partition(":")[0]], size.width, size.inner, dtype, given.device, given.wall)
    reports = time_turns(cases, given.rounds, given.steps, given.wall, given.threads, rate.measure)
    agreement = agree(cases, reports)
    peaks: Sequence[Memory | None] = [report.memory for report in reports]
    if given.device == "cpu" and not given.no_memory:
        peaks = weigh_sides(cases, given.threads)
    rows = table(cell, cases, reports, peaks, given.steps, rate.median)
    print(
        f"\n{cell.size} {cell.profile} {cell.method} {cell.precision}, batch {cases[0].rows}, {cases[0].dtype} weights"
    )
    print(f"{agreement}; {rate.median / 1e9:.1f} GFLOP/s in {dtype}")
    print_rows(rows)
    return rows


def table(
    cell: Cell,
    cases: Sequence[Case],
    reports: Sequence[Report],
    peaks: Sequence[Memory | None],
    steps: int,
    rate: float,
) -> list[Row]:
    """Make a row of each side's report."""
    work, least = cases[0].work(), limits(cases[0], steps, rate)
    turns = range(steps, cases[0].steps, steps)
    trained = [statistics.fmean(work.trained(batch) for batch in range(turn, turn + steps)) for turn in turns]
    tokens = [statistics.fmean(work.tokens(batch) for batch in range(turn, turn + steps)) for turn in turns]
    sides = ["own lora" if case.method != cell.method else case.side for case in cases]
    usual = reports[sides.index(USUAL)].seconds if USUAL in sides else None
    usual_peak = peaks[sides.index(USUAL)] if USUAL in sides else None
    own = reports[sides.index("own lora" if "own lora" in sides else "ours")] if "ours" in sides else None
    rows = []
    for side, report, peak in zip(sides, reports, peaks, strict=True):
        taken = report.seconds
        row = Row(
            **asdict(cell),
            side=side,
            trained_per_s=ratio(trained, taken),
            tokens_per_s=ratio(tokens, taken),
            step_s=statistics.median(taken),
            speed=ratio(usual, taken) if usual else None,
            limit=ratio(taken, least),
            own_lora=ratio(taken, own.seconds) if own and side in ("ours", "own lora") else None,
            slower=ratio(taken, reports[sides.index("ours")].seconds) if "ours" in sides else None,
            loss=report.losses[-1],
        )
        if peak:
            row.whole, row.above = peak.whole, peak.above
            if usual_peak:
                row.whole_ratio, row.memory = peak.whole / usual_peak.whole, peak.above / usual_peak.above
        rows.append(row)
    return rows


# The command line ---------------------------------------------------------------------------------------------------


def chosen(what: str, given: str, allowed: Sequence[str]) -> list[str]:
    """Read a list of names with commas between them; PeftkitError for one that is not allowed."""
    names = list(allowed) if given == "all" else [name.strip() for name in given.split(",")]
    for name in names:
        if name not in allowed:
            raise PeftkitError(unknown(what, name, allowed))
    return names


def arguments(command: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; None is that of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="60m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--profiles", default="e2e", help=f"of {', '.join(PROFILES)}")
    parser.add_argument("--methods", default=OWN, help=f"of {', '.join(TECHNIQUES)}")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or both with a comma between them")
    parser.add_argument("--sides", default="all", help=f"of {', '.join(SIDES)}")
    parser.add_argument(
        "--goals", action="store_true", help="measure what has goals, of the sizes and precisions given"
    )
    parser.add_argument("--ablate", action="store_true", help="measure ours without each part, instead of --sides")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each side")
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps of a turn")
    parser.add_argument("--rows", type=int, help="rows of a batch instead of the profile's")
    parser.add_argument("--weights", choices=["float32", "bfloat16"], help="of the model; default: as the precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    timing = parser.add_mutually_exclusive_group()
    timing.add_argument(
        "--cpu-time", dest="wall", action="store_false", help="time on the processor (default on a CPU)"
    )
    timing.add_argument("--wall", dest="wall", action="store_true", help="time by the clock (default on a GPU)")
    parser.set_defaults(wall=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--csv", type=Path, help="a file to write the table to")
    given = parser.parse_args(command)
    given.sides = ",".join(("ours", *PARTS)) if given.ablate else given.sides
    given.wall = given.device != "cpu" if given.wall is None else given.wall
    if min(given.rounds, given.steps, given.threads, given.rows or 1) < 1:
        parser.error("--rounds, --steps, --threads and --rows are at least 1.")
    if given.device != "cpu" and not given.wall:
        parser.error("--cpu-time measures the processor; a GPU is measured by --wall.")
    return given


def goals_of(given: argparse.Namespace) -> Sequence[Goal]:
    """Return the goals of the device."""
    return CPU_GOALS if given.device == "cpu" else GPU_GOALS


def cells_of(given: argparse.Namespace) -> list[Cell]:
    """List the work that the command line asks for."""
    sizes, precisions = chosen("size", given.sizes, list(SIZES)), chosen("precision", given.precision, list(TOLERANCES))
    if given.goals:
        cells = dict.fromkeys(goal.cell for goal in goals_of(given))
        return [cell for cell in cells if cell.size in sizes and cell.precision in precisions]
    profiles, methods = (
        chosen("profile", given.profiles, list(PROFILES)),
        chosen("method", given.methods, list(TECHNIQUES)),
    )
    return [
        Cell(size, profile, method, precision)
        for size in sizes
        for precision in precisions
        for profile in profiles
        for method in methods
    ]


def measure_all(cells: Sequence[Cell], given: argparse.Namespace) -> tuple[list[Row], bool]:
    """Return the rows of all cells, and whether a cell failed, which is reported and leaves the others running."""
    rows: list[Row] = []
    failed = False
    for cell in cells:
        try:
            rows += measure(cell, given)
        except PeftkitError as error:
            failed = True
            print(f"benchmarks/training.py: {error}", file=sys.stderr, flush=True)
    return rows, failed


def main(command: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    given = arguments(command)
    torch.set_num_threads(given.threads)
    if not given.no_memory and given.device == "cpu" and not sys.platform.startswith("linux"):
        print("peak memory is read from /proc, which Linux alone has: it is left out", file=sys.stderr)
        given.no_memory = True
    try:
        given.sides = chosen("side", given.sides, available(switches=given.sides != "all"))
        cells = cells_of(given)
        timed = f"the clock, {given.threads} threads" if given.wall else "time on the processor"
        turns = f"medians of {given.rounds} turns of {given.steps} optimizer steps"
        print(f"{machine(given.device)}, torch {torch.__version__}, {timed}, {turns}")
    except PeftkitError as error:
        print(f"benchmarks/training.py: {error}", file=sys.stderr)
        return 2
    rows, failed = measure_all(cells, given)
    print_turns(rows)
    if given.ablate:
        ablation.show(rows)
    if given.goals:
        print_goals(rows, goals_of(given))
    if given.csv and rows:
        write_csv(given.csv, rows)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
