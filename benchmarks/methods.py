"""The step time and peak memory of every registered method, as ratios to LoRA.

Run it as `python benchmarks/methods.py [--methods dora,ia3] [--csv FILE]`; `--help` lists the sizes. A step is that of
the training loop: forward, backward, the method's hooks, clipping and optimizer, on one batch of random tokens and on
a Llama with random weights, or on `--model`. The methods take turns: every round runs one step of each, and the medians
over the rounds are compared. What is measured is the time that one thread spends on the processor, so that other work
on the machine disturbs it little; `--wall` takes the clock instead.

Memory is measured apart, each method in a process of its own: the highest resident size from seating the adapters to
the end of the third step (preparation, gradients, optimizer state, activations and buffers are in it), less the size
before the model was built. A step of a small model comes first, so that code loaded on the way does not count, and the
allocator is told to give large blocks back at once, so that what it would keep does not either.
"""

from __future__ import annotations

import argparse
import csv
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "core")]

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftkit.method import Method
    from peftkit.models.load import LoadedModel
    from peftkit.training.loop import Loop

REFERENCE = "lora"
PAIR = ("lora", "dora")
"""Methods that are compared at the same rank on q and v, which is their default, and on every linear map."""
THIN = "lora-fa"
"""The method that claims to keep less for the backward pass."""
LIMIT = 1.25
"""How much longer than LoRA's a step of DoRA may take."""
MEMORY_STEPS = 3
TOKENIZER = "bundled/tiny"
LOADED = ("torch", "transformers", "peftkit.training.loop", "peftkit.models.load", "peftkit.recipe")
"""What the process that starts the others imports once for all of them."""
MEBI = 2**20


@dataclass(frozen=True)
class Case:
    """A method with options; the first case of each method has none."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name in the table."""
        return " ".join((self.method, *(f"{key}={value}" for key, value in self.options.items())))

    def build(self) -> Method:
        """Build the method."""
        from peftkit.method import METHODS

        return METHODS[self.method].from_options(self.options)


@dataclass(frozen=True)
class Size:
    """The model, made from its sizes unless it is named, and the batch of `rows` times `length` tokens."""

    model: str | None
    width: int
    layers: int
    rows: int
    length: int


SMALL = Size(None, 64, 2, 2, 16)


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


def load_model(size: Size) -> LoadedModel:
    """Build the Llama of the sizes with random weights, or load the named model."""
    from peftkit.models.load import load
    from peftkit.recipe import ModelSection

    if size.model is not None:
        return load(ModelSection(name=size.model))
    heads = max(1, size.width // 64)
    config = {"hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": heads}
    config |= {"intermediate_size": size.width * 11 // 4, "num_key_value_heads": heads}
    return load(ModelSection(init={"architecture": "llama", **config}, tokenizer=TOKENIZER))


def share_weights(model: nn.Module) -> nn.Module:
    """Copy a model whose parameters keep the memory of the original's."""
    import copy

    from torch import nn

    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def make_loop(case: Case, model: Any, tokenizer: Any, size: Size, steps: int) -> Loop:
    """Attach the method and build the training loop over one batch of random tokens, all of which are trained on."""
    import torch

    from peftkit import adapt
    from peftkit.data.batches import Batches
    from peftkit.data.encode import IGNORED, Encoded
    from peftkit.recipe import TrainSection
    from peftkit.training.loop import Loop

    adaptation = adapt.attach(model, [case.build()], keep_base=False)
    for part in adaptation.parts:
        for parameter in part.own.values():  # what is trained must not stand in memory that other models share
            parameter.data = parameter.data.clone()
    soft, generator = list(adaptation.soft_ids), torch.Generator().manual_seed(0)
    texts = torch.randint(3, len(tokenizer), (size.rows, size.length), generator=generator).tolist()
    encoded = [Encoded([*soft, *ids], [*[IGNORED] * len(soft), *ids]) for ids in texts]
    batches = Batches(encoded, batch_examples=size.rows)
    torch.manual_seed(0)
    pad_id = tokenizer.pad_token_id
    adaptation.prepare([batches.collate(indices, pad_id) for indices in batches.plan(0)])
    section = TrainSection(max_steps=steps, batch_examples=size.rows)
    return Loop(model, adaptation, batches, section, pad_id=pad_id, device=torch.device("cpu"))


def suitable(cases: Sequence[Case], model: Any) -> list[Case]:
    """Return the cases that suit the model; the others are told with the reason."""
    from peftkit import adapt
    from peftkit.errors import PeftkitError

    kept = []
    for case in cases:
        method = case.build()
        try:
            adapt.check(model, [method])
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


def resident(key: str) -> int:
    """Return the resident size of this process in bytes: now (VmRSS) or the highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def peak_memory(case: Case, size: Size) -> tuple[int, int]:
    """Measure in this process the peak memory of the training, and what of it is above the base's weights, in bytes."""
    import torch

    torch.set_num_threads(1)
    small = load_model(SMALL)
    make_loop(case, small.model, small.tokenizer, SMALL, MEMORY_STEPS).run_step()
    del small
    gc.collect()
    before = resident("VmRSS")
    loaded = load_model(size)
    gc.collect()
    with_weights = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest size is counted from here on
    loop = make_loop(case, loaded.model, loaded.tokenizer, size, MEMORY_STEPS)
    for _ in range(MEMORY_STEPS):
        loop.run_step()
    highest = resident("VmHWM")
    return highest - before, highest - with_weights


def measure_memory(cases: Sequence[Case], size: Size) -> list[tuple[int, int]]:
    """Measure the peak memory of each case in a fresh process, one after the other."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    found = []
    for case in cases:
        with ProcessPoolExecutor(1, context) as pool:
            found.append(pool.submit(peak_memory, case, size).result())
        show(f"memory of {case.label} is measured")
    return found


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
    from peftkit.training.loss import batch_loss

    width = size.width
    linear = nn.Linear(width, width).requires_grad_(False)
    adapter = case.build().build(Site("linear", linear, width, width))
    # A result of other work is no leaf of autograd's graph, as the input of a layer is none.
    x = torch.randn(size.rows, size.length, width, requires_grad=True) * 1.0
    alone = count_saved(lambda: adapter(linear, x), [*linear.parameters(), *adapter.parameters()])
    loop = make_loop(case, share_weights(loaded.model), loaded.tokenizer, size, 1)
    loop.model.train()
    batch = loop.batches.collate(loop.batches.plan(0)[0], loop.pad_id)
    whole = count_saved(
        lambda: batch_loss(loop.model, batch, loop.device), [*loop.model.parameters(), *loop.model.buffers()]
    )
    return alone, whole


# What is shown ------------------------------------------------------------------------------------------------------


def show(progress: str) -> None:
    """Tell on a terminal what is done, each time in the place of the last."""
    if sys.stderr.isatty():
        print(f"\r{progress:<60}", end="\r", file=sys.stderr, flush=True)


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
    found = {row.method: row for row in rows}
    for label, options in (("q,v", {}), ("linear", {"targets": "linear"})):
        one, other = (found.get(Case(method, options).label) for method in PAIR)
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


def arguments() -> argparse.Namespace:
    """Read the command line."""
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
    given = parser.parse_args()
    if min(given.rounds, given.width, given.layers, given.rows, given.length) < 1:
        parser.error("--rounds, --width, --layers, --rows and --length are at least 1.")
    return given


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


def main() -> int:
    """Run the command; return the exit code."""
    given = arguments()
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
