"""Several adapters over one frozen base in one pass, beside the same runs one after another.

`python benchmarks/together.py [--jobs 8] [--sizes 60m] [--profiles e2e] [--precision fp32,bf16] [--rows 2]`; `--jobs 4
--rows 4 --precision bf16` is four runs of a quarter of the batch of 16, which has a goal.

Every job is a LoRA of all linear layers with its own rank, learning rate and data. The two sides take turns in one
process, on one model and the same micro-batches: a turn is `--steps` optimizer steps of every job. On a CPU the time is
what the process spends on the processor; `--wall` takes the clock, as on a GPU. Told are the medians over the turns and
the median of the ratios within a turn. The losses of both sides have to agree, else the benchmark ends with an error.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from cases import RATE, SIZES, Case, Planned, llama
from profiles import PROFILES, draw
from torch import nn

from peftkit.adaptation import activate, attach
from peftkit.engine.engine import Arrangement, choose
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.recipe import TrainSection
from peftkit.together.rounds import Done, Member, backward_together
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
"""How far the losses of both sides may lie apart."""
GOAL = 1.5


@dataclass
class Report:
    """The seconds of each turn, and the losses of each job, one side."""

    seconds: list[float]
    losses: list[list[float]]


def job(case: Case, model: nn.Module, number: int, name: str) -> Loop:
    """Attach the adapter of one job and build its loop over data of its own."""
    method = METHODS["lora"].from_options({"rank": 2 + 2 * number, "targets": "linear"})
    adaptation = attach(model, [method], name=name, seed=number, keep_base=False)
    rows = draw(case.profile, case.steps, case.rows, case.measures.vocabulary, seed=number).rows
    rate = RATE * (1 + number)
    section = TrainSection(
        max_steps=case.steps, batch_examples=case.rows, learning_rate=rate, schedule="constant", warmup=0
    )
    device = torch.device(case.device)
    engine, notices = choose(model, rows, 0, device, Arrangement())
    if notices:
        raise SystemExit(notices[0])
    batches = Planned(rows, batch_examples=case.rows)
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=device, precision=case.precision)


def one_after_another(model: nn.Module, loops: dict[str, Loop], steps: int) -> list[list[float]]:
    """Take the steps of each job by itself; returns its losses."""
    losses = []
    for name, loop in loops.items():
        activate(model, name)
        losses.append([loop.run_step()["loss"] for _ in range(steps)])
    return losses


def at_once(_: nn.Module, loops: dict[str, Loop], steps: int) -> list[list[float]]:
    """Take the steps of all jobs together; returns the losses of each."""
    losses: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(steps):
        pending = {name: loop.next() for name, loop in loops.items()}
        members = {
            name: Member(loop.passes.plain, pending[name].batches, pending[name].normaliser)
            for name, loop in loops.items()
        }
        backward_together(members)
        for name, loop in loops.items():
            record = loop.take(pending[name], Done(loop.passes, members[name].result))
            losses[name].append(record["loss"])
    return list(losses.values())


def measure(case: Case, jobs: int, rounds: int, steps: int, clock: Callable[[], float]) -> tuple[Report, Report]:
    """Let both sides take turns, after one that does not count; returns the report of each."""
    model = llama(case, None)
    sides = [
        {f"{side}-{number}": job(case, model, number, f"{side}-{number}") for number in range(jobs)} for side in "ab"
    ]
    reports = Report([], [[] for _ in range(jobs)]), Report([], [[] for _ in range(jobs)])
    for turn in range(rounds + 1):
        order = (0, 1) if turn % 2 else (1, 0)
        for side in order:
            began = clock()
            losses = (one_after_another, at_once)[side](model, sides[side], steps)
            if turn:
                reports[side].seconds.append(clock() - began)
            for kept, more in zip(reports[side].losses, losses, strict=True):
                kept += more
    return reports


def agree(alone: Report, together: Report, bound: float) -> float:
    """Return how far the losses of the sides lie apart; PeftkitError where that is too far."""
    pairs = zip(alone.losses, together.losses, strict=True)
    far = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
    if not far <= bound:
        raise PeftkitError(f"the losses of the sides lie {far:.1e} apart, and {bound:g} is allowed: not the same runs.")
    return far


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each size, profile and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--sizes", default="60m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--profiles", default="e2e", help=f"of {', '.join(PROFILES)}")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--rows", type=int, default=2, help="rows of a job's micro-batch")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--steps", type=int, default=2, help="steps of every job in a turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)

    def clock() -> float:
        if given.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if given.wall or given.device == "cuda" else time.process_time()

    for size in given.sizes.split(","):
        for profile in given.profiles.split(","):
            for precision in given.precision.split(","):
                steps = (given.rounds + 1) * given.steps
                case = Case(
                    "ours", size, profile, "lora", precision, DTYPES[precision], given.rows, steps, given.device
                )
                show(case, given.jobs, given.steps, *measure(case, given.jobs, given.rounds, given.steps, clock))
    return 0


def show(case: Case, jobs: int, steps: int, alone: Report, together: Report) -> None:
    """Print what was measured of one case."""
    far = agree(alone, together, TOLERANCES[case.precision])
    works = [draw(case.profile, case.steps, case.rows, case.measures.vocabulary, seed=number) for number in range(jobs)]
    turns = [
        sum(work.trained(batch) for work in works for batch in range(start, start + steps))
        for start in range(steps, case.steps, steps)
    ]
    speeds = [statistics.median(t / s for t, s in zip(turns, side.seconds, strict=True)) for side in (alone, together)]
    ratio = statistics.median(a / b for a, b in zip(alone.seconds, together.seconds, strict=True))
    print(
        f"{case.size} {case.profile} {case.precision}, {jobs} jobs of {case.rows} rows: one after another "
        f"{speeds[0]:.0f} trained tokens/s, together {speeds[1]:.0f}, ratio {ratio:.2f}; losses of {case.steps} steps "
        f"within {far:.1e}; goal for 4 jobs in bf16 {GOAL}",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
