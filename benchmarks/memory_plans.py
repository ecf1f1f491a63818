"""What each memory plan takes and costs: bytes above the loaded model, and the time of a step.

`python benchmarks/memory_plans.py [--size 60m] [--rows 32] [--method lora]` trains the E2E profile of `training.py` in
fp32 by each plan of `train.memory`, each in a process of its own with one thread. *Measured* is the highest resident
size over two steps after a first one, above the size before them; the allocator gives what is free back at once, so
that nothing but what is held counts. *Predicted* is what the run would choose the plan by. The time is what the thread
spends on the processor, the shorter of the two steps. The losses of all plans have to agree.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cases import Case, llama
from memory import resident
from sides import our_loop

from peftkit.data.batches import Batches
from peftkit.engine.memory_plan import memory_plans
from peftkit.engine.retrying import Retrying
from peftkit.estimation.fit import Fit
from peftkit.recipe import TrainSection

STEPS = 3
TOLERANCE = 1e-5


def measure(case: Case, number: int) -> tuple[str, int, int, float, float] | None:
    """Train by one plan; returns its name, bytes predicted and measured, seconds and the last loss.

    None where there are not so many plans.
    """
    import torch

    torch.set_num_threads(1)
    loop = our_loop(case, llama(case, None))
    assert isinstance(loop.batches, Batches)
    plans = memory_plans(loop.adaptation.model, loop.batches, loop.device, checkpointing=False)
    if number >= len(plans):
        return None
    plan = plans[number]
    batch = loop.batches.collate(loop.batches.plan(0)[0], loop.pad_id)
    loop.passes = passes = Retrying(loop.passes, [plan])
    predicted = Fit(TrainSection(memory="auto"), lambda: batch, print).needed(passes, plan, batch)
    passes.take(plan)
    loop.run_step()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds, loss = [], 0.0
    for _ in range(STEPS - 1):
        started = time.thread_time()
        loss = loop.run_step()["loss"]
        seconds.append(time.thread_time() - started)
    return str(plan), predicted, resident("VmHWM") - before, min(seconds), loss


def main() -> int:
    """Print a table of the plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="60m")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--method", default="lora")
    given = parser.parse_args()
    case = Case("ours", given.size, "e2e", given.method, "fp32", "float32", given.rows, STEPS)
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    print("| plan | predicted | measured | time |\n|---|---:|---:|---:|")
    first: tuple[float, float] | None = None
    number = 0
    while True:
        with ProcessPoolExecutor(1, context) as pool:
            result = pool.submit(measure, case, number).result()
        if result is None:
            return 0
        name, predicted, measured, seconds, loss = result
        first = first or (seconds, loss)
        if abs(loss - first[1]) > TOLERANCE * abs(first[1]):
            raise SystemExit(f"the loss by the plan '{name}' is {loss}, and {first[1]} on the first.")
        sizes = f"{predicted / 1e6:,.0f} MB | {measured / 1e6:,.0f} MB"
        print(f"| {name} | {sizes} | {seconds / first[0]:.2f} |", flush=True)
        number += 1


if __name__ == "__main__":
    sys.exit(main())
