"""The step time and peak memory of every registered method, as ratios to LoRA.

Run it as `python benchmarks/methods.py [--methods dora,ia3] [--csv FILE]`; `--help` lists the sizes. A step is that of
the training loop: forward, backward, the method's hooks, clipping and optimizer, on one batch of random tokens and on
a Llama with random weights, or on `--model`. The methods take turns: every round runs one step of each, and the medians
over the rounds are compared. What is measured is the time that one thread spends on the processor, so that other work
on the machine disturbs it little; `--wall` takes the clock instead.

Memory is measured apart, each method in a process of its own; `memory.py` tells how.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory import measure_memory, saved_bytes
from workload import Case, Size, load_model, make_loop, share_weights, show

if TYPE_CHECKING:
    from peftkit.models.loaded import LoadedModel

REFERENCE = "lora"
PAIR = ("lora", "dora")
"""Methods that are compared at the same rank on q and v, which is their default, and on every linear map."""
THIN = "lora-fa"
"""The method that claims to keep less for the backward pass."""
LIMIT = 1.25
"""How much longer than LoRA's a step of DoRA may take."""
MEBI = 2**20


@dataclass
class Row:
    """A line of the table: medians in seconds, sizes in bytes, and their ratios to LoRA's."""

    method: str
    trainable: int
    seconds: float
    time_ratio: float = 1.0
    peak: int | None = None
    peak_ratio: float | None = None
    above_weights: int | None = None
    above_ratio: float | None = None


# What is measured ---------------------------------------------------------------------------------------------------


def suitable(cases: Sequence[Case], model: Any) -> list[Case]:
    """Return the cases that suit the model; the others are named with the reason."""
    from peftkit.adaptation import check_methods
    from peftkit.errors import PeftkitError

    kept = []
    for case in cases:
        method = case.build()
        try:
            check_methods(model, [method])
            kept.append(case)
        except PeftkitError as error:
            print(f"{case.label} is left out: {error}", flush=True)
    return kept


def time_steps(cases: Sequence[Case], loaded: LoadedModel, size: Size, rounds: int, clock: Callable[[], float]) -> list:
    """Time `rounds` steps of every case in turns, after one that is not counted; return a row for each case."""
    loops = [make_loop(case, share_weights(loaded.model), loaded.tokenizer, size, rounds + 1) for case in cases]
    times: list[list[float]] = [[] for _ in cases]
    gc.disable()  # else whoever's turn it is pays for the others' garbage
    for number in range(rounds + 1):
        for loop, past in zip(loops, times, strict=True):
            gc.collect()
            began = clock()
            loop.run_step()
            past.append(clock() - began)
        show(f"round {number} of {rounds} is done")
    gc.enable()
    return [
        Row(case.label, loop.adaptation.trainable, statistics.median(past[1:]))
        for case, loop, past in zip(cases, loops, times, strict=True)
    ]


# What is shown ------------------------------------------------------------------------------------------------------


def finish(rows: Sequence[Row], memory: Sequence[tuple[int, int]]) -> None:
    """Fill in the memory and the ratios to LoRA, which is the first row."""
    for row, (peak, above) in zip(rows, memory, strict=False):
        row.peak, row.above_weights = peak, above
    first = rows[0]
    for row in rows:
        row.time_ratio = row.seconds / first.seconds
        if row.peak and row.above_weights and first.peak and first.above_weights:
            row.peak_ratio, row.above_ratio = row.peak / first.peak, row.above_weights / first.above_weights


def print_table(rows: Sequence[Row], clock: str) -> None:
    """Print the rows in columns."""
    print(f"{'':<26}{'':>12}{clock:^18}{'peak memory':^20}{'above the weights':^20}")
    print(f"{'method':<26}{'trainable':>12}{'seconds':>10}{'ratio':>8}{'MiB':>12}{'ratio':>8}{'MiB':>12}{'ratio':>8}")
    for row in rows:
        line = f"{row.method:<26}{row.trainable:>12,}{row.seconds:>10.3f}{row.time_ratio:>8.2f}"
        for value, ratio in ((row.peak, row.peak_ratio), (row.above_weights, row.above_ratio)):
            line += f"{'-':>12}{'-':>8}" if value is None else f"{value / MEBI:>12.1f}{ratio:>8.2f}"
        print(line)


def print_pair(rows: Sequence[Row]) -> None:
    """Print how DoRA compares with LoRA at the same rank and targets."""
    measured = {row.method: row for row in rows}
    for label, options in (("q,v", {}), ("linear", {"targets": "linear"})):
        one, other = (measured.get(Case(method, options).label) for method in PAIR)
        if one and other:
            text = f"{PAIR[1]} / {PAIR[0]} on {label}: step time {other.seconds / one.seconds:.2f} (at most {LIMIT})"
            if one.peak and other.peak:
                text += f", peak memory {other.peak / one.peak:.2f}"
            print(text)


def print_saved(loaded: LoadedModel, size: Size) -> None:
    """Print what autograd saves with LoRA-FA and with LoRA, without dropout and with it."""
    print(f"\nbytes that autograd saves: one adapted linear map [{size.width}, {size.width}] alone; the whole model")
    for dropout in (0.0, 0.1):
        for method in (REFERENCE, THIN):
            alone, whole = saved_bytes(Case(method, {"dropout": dropout}), loaded, size)
            print(f"{method:<10}dropout {dropout}{alone:>14,}{whole:>16,}")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the table as CSV, times in seconds and sizes in bytes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(asdict(rows[0]))
        writer.writerows(astuple(row) for row in rows)


def choose(names: str | None) -> list[Case]:
    """List the cases, LoRA first; without names every registered method."""
    from peftkit.method import METHODS

    wanted = METHODS.names() if names is None else [name.strip() for name in names.split(",")]
    cases = [Case(name) for name in dict.fromkeys((REFERENCE, *wanted))]
    if set(PAIR) <= {case.method for case in cases}:
        # Beside each other, so that the machine is in the same state for both.
        cases = [case for case in cases if case.method not in PAIR]
        cases = [*map(Case, PAIR), *(Case(method, {"targets": "linear"}) for method in PAIR), *cases]
    return cases


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; None is that of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--methods", help="names with commas between them; LoRA is added (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each method, one in each round")
    parser.add_argument("--model", help="a model as in a recipe, instead of one made from the sizes")
    parser.add_argument("--width", type=int, default=512, help="width of the hidden states, 64 for each head")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4, help="texts of the batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a text")
    parser.add_argument("--wall", action="store_true", help="time by the clock instead of on the processor")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--csv", type=Path, help="a file to write the table to")
    chosen = parser.parse_args(given)
    if min(chosen.rounds, chosen.width, chosen.layers, chosen.rows, chosen.length) < 1:
        parser.error("--rounds, --width, --layers, --rows and --length are at least 1.")
    return chosen


def measure(given: argparse.Namespace) -> None:
    """Measure what the command line asks for and print it."""
    import torch

    torch.set_num_threads(1)
    size = Size(given.model, given.width, given.layers, given.rows, given.length)
    loaded = load_model(size)
    size = replace(size, width=int(loaded.model.config.get_text_config().hidden_size))
    cases = suitable(choose(given.methods), loaded.model)
    named, parameters = given.model or "a random Llama", sum(p.numel() for p in loaded.model.parameters())
    print(f"{named}, {parameters / 1e6:.1f} M parameters, width {size.width}; {size.rows} x {size.length} tokens, fp32")
    clock = time.perf_counter if given.wall else time.process_time
    rows = time_steps(cases, loaded, size, given.rounds, clock)
    gc.collect()
    memory = [] if given.no_memory else measure_memory(cases, size)
    finish(rows, memory)
    print_table(rows, "step, by the clock" if given.wall else "step, one thread")
    print_pair(rows)
    if THIN in {case.method for case in cases}:
        print_saved(loaded, size)
    if given.csv:
        write_csv(given.csv, rows)


def main(command: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    given = arguments(command)
    from peftkit.errors import PeftkitError

    if not given.no_memory and not sys.platform.startswith("linux"):
        print("peak memory is read from /proc, which Linux alone has: it is left out", file=sys.stderr)
        given.no_memory = True
    try:
        measure(given)
    except PeftkitError as error:
        print(f"benchmarks/methods.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
