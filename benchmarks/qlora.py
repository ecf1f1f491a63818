"""A QLoRA step of a random Llama: ours beside Hugging Face peft on bitsandbytes' layers, in one run.

`python benchmarks/qlora.py --device cuda` takes the sizes of a 7 B Llama; `--width 256 --layers 2` and the like make it
small enough for a CPU. Both candidates get the same weights, stored as nf4 with double quantization, the same tokens
and LoRA of one rank on every linear map; their first losses have to agree. Steps are timed in turns in one process,
medians shown; the peak of memory is measured in a process for each: the device's allocator on a GPU, and on a
CPU the resident size above that of the imported libraries.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.adaptation import attach
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.device import peak_memory
from peftkit.engine.engine import Arrangement, Engine
from peftkit.layout import GROUPS, Layout
from peftkit.method import METHODS
from peftkit.models.layerwise import without_weights
from peftkit.models.load import quiet
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop

RANK, ALPHA, RATE = 16, 32.0, 1e-4
TOLERANCE = 2e-2
"""The relative difference of the first losses that the rounding of bf16 explains."""
Step = Callable[[], float]


def llama(chosen: argparse.Namespace, pack: Callable[[Tensor], nn.Module]) -> nn.Module:
    """Build the Llama on the device, each linear map of its blocks as `pack` makes it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    heads = chosen.width // chosen.head
    sizes = {"hidden_size": chosen.width, "num_hidden_layers": chosen.layers, "vocab_size": chosen.vocabulary}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": chosen.inner}
    config = AutoConfig.for_model("llama", **sizes, max_position_embeddings=max(2048, chosen.length))
    with quiet(), without_weights():
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype_of(chosen))
    blocks = {site.path for site in Layout(model).linears if site.role in GROUPS["linear"]}
    generator = torch.Generator(chosen.device).manual_seed(0)
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape, dtype = parameter.shape, parameter.dtype
            value = torch.ones(shape, dtype=dtype, device=chosen.device)
            if parameter.dim() > 1:
                value.normal_(std=0.02, generator=generator)
            if path in blocks:
                parent, _, key = path.rpartition(".")
                setattr(model.get_submodule(parent), key, pack(value))
            else:
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.to(chosen.device)


def dtype_of(chosen: argparse.Namespace) -> torch.dtype:
    """Return what the model computes in."""
    return torch.float32 if chosen.device == "cpu" and not chosen.bf16 else torch.bfloat16


def ours(chosen: argparse.Namespace) -> Step:
    """Return our training loop's step."""
    model = llama(chosen, lambda weight: PackedLinear.of(weight, None, QUANTIZERS["nf4"]()))
    method = METHODS["lora"].from_options({"rank": RANK, "alpha": ALPHA, "targets": "linear"})
    adaptation = attach(model, [method], keep_base=False)
    rows = [Encoded(ids, ids) for ids in tokens(chosen).tolist()]
    steps = chosen.rounds + 2
    section = TrainSection(max_steps=steps, batch_examples=chosen.rows, learning_rate=RATE, schedule="constant")
    device = torch.device(chosen.device)
    precision = "fp32" if dtype_of(chosen) == torch.float32 else "bf16"
    batches = Batches(rows, batch_examples=chosen.rows)
    engine = Engine(model, Arrangement(flat=False))
    loop = make_loop(engine, adaptation, batches, section, pad_id=0, device=device, precision=precision)
    return lambda: float(loop.run_step()["loss"])


def theirs(chosen: argparse.Namespace) -> Step:
    """Return the step of a bare loop over Hugging Face peft and bitsandbytes."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    dtype = dtype_of(chosen)

    def pack(weight: Tensor) -> nn.Module:
        layer = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        return layer.to(chosen.device)

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(llama(chosen, pack), config).train()  # type: ignore[arg-type]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    ids = tokens(chosen).to(chosen.device)

    def step() -> float:
        with torch.autocast(torch.device(chosen.device).type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


CANDIDATES: dict[str, Callable[[argparse.Namespace], Step]] = {"peftkit": ours, "peft + bitsandbytes": theirs}


def tokens(chosen: argparse.Namespace) -> Tensor:
    """Return the batch of ids [rows, length]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, chosen.vocabulary, (chosen.rows, chosen.length), generator=generator)


def measure_times(chosen: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return (first loss, median seconds of a step) of each candidate, stepped in turns."""
    steps = {name: build(chosen) for name, build in CANDIDATES.items()}
    first = {name: step() for name, step in steps.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(chosen.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()  # the loss that it returns waits for the device
            if number:
                taken[name].append(time.perf_counter() - begin)
    return {name: (first[name], statistics.median(taken[name])) for name in steps}


def measure_memory(name: str, chosen: argparse.Namespace) -> int:
    """Return the peak bytes of building one candidate and two of its steps, in this process."""
    device = torch.device(chosen.device)
    before = peak_memory(device)
    step = CANDIDATES[name](chosen)
    for _ in range(2):
        step()
    return peak_memory(device) - before


def rows(chosen: argparse.Namespace, arguments: list[str]) -> Iterator[dict[str, Any]]:
    """Measure and yield a line of the table for each candidate."""
    peaks = {}
    for name in CANDIDATES:
        command = [sys.executable, __file__, *arguments, "--memory-of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = int(done.stdout.split()[-1])
    sides = measure_times(chosen)
    reference = list(CANDIDATES)[-1]
    losses = [loss for loss, _ in sides.values()]
    if abs(losses[0] - losses[1]) > TOLERANCE * losses[1]:
        raise SystemExit(f"the first losses differ: {losses}; the candidates do not run the same model.")
    for name, (loss, seconds) in sides.items():
        yield {
            "candidate": name,
            "first_loss": round(loss, 4),
            "step_s": round(seconds, 4),
            "tokens_s": round(chosen.rows * chosen.length / seconds),
            "peak_GB": round(peaks[name] / 1e9, 3),
            "speed_ratio": round(sides[reference][1] / seconds, 2),
            "memory_ratio": round(peaks[name] / peaks[reference], 2),
        }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 on a CPU too")
    sizes = {"width": 4096, "layers": 32, "inner": 11008, "head": 128, "vocabulary": 32000}
    for key, value in {**sizes, "rows": 4, "length": 512, "rounds": 7}.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--csv", type=Path, default=None)
    parser.add_argument("--memory-of", choices=list(CANDIDATES), default=None, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a line for each candidate, and write them where `--csv` says."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = parse(given)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.memory_of:
        print(measure_memory(chosen.memory_of, chosen))
        return 0
    device = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else "CPU"
    print(
        f"Llama {chosen.width} x {chosen.layers}, {chosen.rows} x {chosen.length} tokens, {device}, {dtype_of(chosen)}"
    )
    table = []
    for row in rows(chosen, given):
        table.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if chosen.csv:
        with chosen.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
