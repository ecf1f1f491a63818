"""The memory that training with a method takes: the highest resident size, and what autograd saves.

The highest resident size is measured in a process of its own for each method: from seating the adapters to the end of
the third step (preparation, gradients, optimizer state, activations and buffers are in it), less the size before the
model was built. A step of a small model comes first, so that code loaded on the way does not count, and the allocator
is set to give large blocks back at once, so that what it would keep does not either.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workload import Case, Size, load_model, make_loop, share_weights, show

if TYPE_CHECKING:
    from torch import Tensor

    from peftkit.models.loaded import LoadedModel

SMALL = Size(None, 64, 2, 2, 16)
STEPS = 3
LOADED = ("torch", "transformers", "peftkit.training.loop", "peftkit.models.load", "peftkit.recipe")
"""What the process that starts the others imports once for all of them."""


def resident(key: str) -> int:
    """Return the resident size of this process in bytes: now (VmRSS) or the highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_memory(case: Case, size: Size) -> tuple[int, int]:
    """Measure in this process the peak memory of the training, and what of it is above the base's weights, in bytes."""
    import torch

    torch.set_num_threads(1)
    small = load_model(SMALL)
    make_loop(case, small.model, small.tokenizer, SMALL, STEPS).run_step()
    del small
    gc.collect()
    before = resident("VmRSS")
    loaded = load_model(size)
    gc.collect()
    with_weights = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size is counted from here on
    loop = make_loop(case, loaded.model, loaded.tokenizer, size, STEPS)
    for _ in range(STEPS):
        loop.run_step()
    highest = resident("VmHWM")
    return highest - before, highest - with_weights


def measure_memory(cases: Sequence[Case], size: Size) -> list[tuple[int, int]]:
    """Measure the peak memory of each case in a fresh process, one after the other."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    peaks = []
    for case in cases:
        with ProcessPoolExecutor(1, context) as pool:
            peaks.append(pool.submit(peak_memory, case, size).result())
        show(f"memory of {case.label} is measured")
    return peaks


def count_saved(run: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Count the bytes that autograd saves while `run` computes, each storage once and the weights' left out."""
    import torch

    known = {tensor.untyped_storage().data_ptr() for tensor in weights}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def saved_bytes(case: Case, loaded: LoadedModel, size: Size) -> tuple[int, int]:
    """Count what autograd saves in one linear map [width, width] alone, and in the forward pass of the whole model."""
    import torch
    from torch import nn

    from peftkit.layout import Site

    width = size.width
    linear = nn.Linear(width, width).requires_grad_(False)
    adapter = case.build().build(Site("linear", linear, width, width))
    # A result of other work is no leaf of autograd's graph, as the input of a layer is none.
    x = torch.randn(size.rows, size.length, width, requires_grad=True) * 1.0
    alone = count_saved(lambda: adapter(linear, x), [*linear.parameters(), *adapter.parameters()])
    loop = make_loop(case, share_weights(loaded.model), loaded.tokenizer, size, 1)
    plain, model = loop.passes.plain, loop.adaptation.model
    model.train()
    packed = plain.engine.pack(loop.batches.collate(loop.batches.plan(0)[0], loop.pad_id))
    whole = count_saved(lambda: plain.loss(packed).sum, [*model.parameters(), *model.buffers()])
    return alone, whole
