"""A packed layer beside bitsandbytes' and the dense one, interleaved in one run; whole steps; loading; bits on disk.

`python benchmarks/quantization.py [--device cuda] [--threads N] [--parts layers steps]`. Times are of one forward and
backward pass, medians of rounds in which every candidate has its turn; ratios are to bitsandbytes' Linear4bit.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.tensor_file import TensorFile

SHAPES = ((1024, 1024), (2048, 2048), (5632, 2048))
TOKENS = (64, 128, 512, 2048)
MODEL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16}
BATCHES = ((2, 256), (4, 512))
ROUNDS = 7
FORMAT = "nf4"
PARTS = ("layers", "steps", "loading")

LOADING = """
import sys
import torch
from peftkit.models.load import load
from peftkit.recipe import ModelSection, QuantizationSection
from peftkit.device import peak_memory
before = peak_memory(torch.device("cpu"))
section = QuantizationSection(format=sys.argv[2]) if sys.argv[2] != "none" else None
model = load(ModelSection(name=sys.argv[1]), quantization=section).model
held = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
packed = sum(m.in_features * m.out_features for m in model.modules() if hasattr(m, "quantizer"))
print(peak_memory(torch.device("cpu")) - before, held, packed)
"""
"""One start in a process of its own: the growth of its peak memory, the model's bytes, and its packed weights."""


def layers(shape: tuple[int, int], dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Build the candidates from one weight [out, in]; bitsandbytes is left out where it cannot be imported."""
    weight = (torch.randn(shape) * 0.02).to(dtype)
    dense = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    dense.weight = nn.Parameter(weight.clone(), requires_grad=False)
    modules: dict[str, nn.Module] = {"ours": PackedLinear.of(weight, None, QUANTIZERS[FORMAT]()), "dense": dense}
    try:
        import bitsandbytes as bnb

        other = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type=FORMAT)
        other.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type=FORMAT)
        modules["bitsandbytes"] = other
    except ImportError:
        print("bitsandbytes is not here: its layer is left out.")
    return {name: module.to(device) for name, module in modules.items()}


def run(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    """Go forward and backward once."""
    x.grad = None
    layer(x).backward(gradient)
    if x.is_cuda:
        torch.cuda.synchronize()


def times(candidates: dict[str, nn.Module], x: Tensor, gradient: Tensor) -> dict[str, float]:
    """Return the median seconds of each candidate's two passes."""
    return in_turns({name: lambda layer=layer: run(layer, x, gradient) for name, layer in candidates.items()})


def in_turns(actions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median seconds of each action, in turns, after two rounds to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(ROUNDS + 2):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if number >= 2:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in taken.items()}


def compare_layers(device: str, say: Callable[[dict[str, Any]], None]) -> None:
    """Measure every shape, dtype and number of tokens."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            candidates = layers(shape, dtype, device)
            for tokens in TOKENS:
                x = torch.randn(tokens, shape[1], dtype=dtype, device=device, requires_grad=True)
                gradient = torch.randn(tokens, shape[0], dtype=dtype, device=device)
                seconds_of = times(candidates, x, gradient)
                reference = seconds_of.get("bitsandbytes", float("nan"))
                row = {"dtype": str(dtype).removeprefix("torch."), "out": shape[0], "in": shape[1], "tokens": tokens}
                row |= {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in seconds_of.items()}
                row |= {"bitsandbytes/ours": round(reference / seconds_of["ours"], 2)}
                row |= {"ours/dense": round(seconds_of["ours"] / seconds_of["dense"], 2)}
                say(row)


def compare_steps(device: str, say: Callable[[dict[str, Any]], None]) -> None:
    """Time whole training steps of LoRA on all linear maps, on packed and on dense weights in turns."""
    from peftkit.adaptation import attach
    from peftkit.data.batches import Batches
    from peftkit.data.encode import Encoded
    from peftkit.engine.engine import Arrangement, Engine
    from peftkit.method import METHODS
    from peftkit.models.load import load
    from peftkit.recipe import ModelSection, QuantizationSection, TrainSection
    from peftkit.training.loop import Loop
    from peftkit.training.nesting import make_loop

    section = ModelSection(init={"architecture": "llama", **MODEL}, tokenizer="bundled/tiny")
    method = METHODS["lora"].from_options({"targets": "linear"})
    for dtype, precision in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        for rows, length in BATCHES:
            ids = torch.randint(3, 1000, (rows, length)).tolist()
            batches = Batches([Encoded(row, row) for row in ids], batch_examples=rows)
            loops: dict[str, Loop] = {}
            for name, chosen in (("dense", None), ("ours", QuantizationSection(format=FORMAT))):
                loaded = load(section, device=device, dtype=dtype, quantization=chosen)
                adaptation = attach(loaded.model, [method], keep_base=False)
                settings = TrainSection(max_steps=1000, batch_examples=rows, learning_rate=1e-4)
                where = torch.device(device)
                engine = Engine(loaded.model, Arrangement(flat=False))
                loops[name] = make_loop(
                    engine, adaptation, batches, settings, pad_id=0, device=where, precision=precision
                )
            seconds_of = in_turns({name: lambda loop=loop: loop.run_step() for name, loop in loops.items()})
            row = {"step": "lora on linear", "dtype": precision, "tokens": rows * length}
            row |= {f"{name}_ms": round(1000 * seconds, 1) for name, seconds in seconds_of.items()}
            say(row | {"ours/dense": round(seconds_of["ours"] / seconds_of["dense"], 2)})


def compare_loading(say: Callable[[dict[str, Any]], None]) -> None:
    """Write a Llama of 173 million weights to disk; load it dense, packed and from the cache, each in a process."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from peftkit import resources
    from peftkit.models.load import quiet

    words = resources.PACKAGE / "models" / "bundled" / "tiny"
    config = AutoConfig.for_model("llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=10)
    config.num_attention_heads = config.num_key_value_heads = 16
    with tempfile.TemporaryDirectory() as folder:
        for path in words.glob("*token*"):
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        with quiet():
            AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="100MB")
        environment = {**os.environ, "PEFTKIT_CACHE": f"{folder}/cache"}
        for name in ("none", *QUANTIZERS.names()):
            command = [sys.executable, "-c", LOADING, folder, name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            peak, held, packed = map(int, done.stdout.split())
            row: dict[str, Any] = {"format": name, "model_MB": round(held / 1e6, 1), "peak_MB": round(peak / 1e6, 1)}
            if name != "none":
                second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                row["second_start_peak_MB"] = round(int(second.stdout.split()[0]) / 1e6, 1)
                row["bits_per_weight"] = round(8 * packed_bytes(Path(environment["PEFTKIT_CACHE"])) / packed, 3)
                shutil.rmtree(environment["PEFTKIT_CACHE"])
            say(row)


def packed_bytes(cache: Path) -> int:
    """Count the bytes of the packed layers' tensors in the only packed file of `cache`."""
    (path,) = cache.rglob("*.safetensors")
    file = TensorFile(path)
    layers = {name.rpartition(".")[0] for name in file.names if name.endswith(".codes")}
    return sum(file.read(name).nbytes for name in file.names if name.rpartition(".")[0] in layers)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a line for each result, and write them where `--csv` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; all by default")
    parser.add_argument("--csv", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    rows: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    print(f"{FORMAT} on {chosen.device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "layers" in chosen.parts:
        compare_layers(chosen.device, say)
    if "steps" in chosen.parts:
        compare_steps(chosen.device, say)
    if "loading" in chosen.parts:
        compare_loading(say)
    if chosen.csv:
        with chosen.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
