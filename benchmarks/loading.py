"""How long a run takes to its first step, and how much memory, by the size of its data set.

`python benchmarks/loading.py [--rows 42000,200000,2000000] [--sides ours,trainer] [--keep FOLDER]` writes rows of its
own (about 60 bytes each), starts a run on them in a process of its own, with nothing kept (cold) and with what that
start kept (warm), and prints the seconds from the start of the process to the end of its first step, by the clock and
on the processors, the most memory of all its processes together, and what of that is beyond a run on 64 rows. The usual
side is `datasets` with transformers' Trainer and Hugging Face peft: the same model, rows, LoRA and batch.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = (42_000, 200_000, 2_000_000)
FEW = 64
LENGTH, ROWS = 512, 8
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leon")
THINGS = ("apples", "books", "coins", "cups", "flowers", "keys", "lamps", "pears", "rings", "shells")
DONE = "first step done"


def write_rows(path: Path, count: int) -> None:
    """Write prompts and completions, nearly all of them different."""
    draw = random.Random(count)
    with path.open("w") as file:
        for _ in range(count):
            prompt = f"{draw.choice(NAMES)} has {draw.randrange(1000)} {draw.choice(THINGS)}."
            file.write(json.dumps({"prompt": prompt, "completion": f"{draw.randrange(1000)} left."}) + "\n")


# What runs in a process of its own ----------------------------------------------------------------------------------


def ours(data: Path, folder: Path) -> None:
    """Begin a run of ours on rows, or on a folder of the E2E set's official files, and leave at its first step."""
    from peftkit import recipe
    from peftkit.training import Silent, train

    class First(Silent):
        def step(self, record: dict[str, Any]) -> None:
            leave()

    chosen = {
        "model": "bundled/tiny",
        "method": {"lora": {"rank": 8}},
        "dataset": {"name": "e2e" if data.is_dir() else "jsonl", "path": str(data)},
        "train": {"max_steps": 10, "batch_examples": ROWS, "max_length": LENGTH, "device": "cpu"},
    }
    train(recipe.load(chosen), folder / "run", observer=First())


def trainer(data: Path, folder: Path) -> None:
    """Do the same with `datasets`, transformers' Trainer and Hugging Face peft, on as many processes."""
    import datasets
    import peft
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class First(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            leave()

    name = ROOT / "core" / "peftkit" / "models" / "bundled" / "tiny"
    words = AutoTokenizer.from_pretrained(name)

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        pairs = list(zip(rows["prompt"], rows["completion"], strict=True))
        prompts = words([f"{prompt}\n" for prompt, _ in pairs], add_special_tokens=False)["input_ids"]
        wholes = words([f"{prompt}\n{said}" for prompt, said in pairs], add_special_tokens=False)["input_ids"]
        ids = [[*whole, words.eos_token_id][:LENGTH] for whole in wholes]
        labels = [[-100] * len(prompt) + whole[len(prompt) :] for prompt, whole in zip(prompts, ids, strict=True)]
        return {"input_ids": ids, "labels": labels}

    read = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(folder / "datasets"))
    rows = read.map(encode, batched=True, num_proc=len(os.sched_getaffinity(0)), remove_columns=read.column_names)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(name), peft.LoraConfig(r=8, task_type="CAUSAL_LM"))
    settings = TrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=ROWS,
        max_steps=10,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collate = DataCollatorForSeq2Seq(words, label_pad_token_id=-100)
    Trainer(model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=[First()]).train()


SIDES = {"ours": ours, "trainer": trainer}


def leave() -> None:
    """Say that the first step is done, and end the process."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(DONE, sum(each.ru_utime + each.ru_stime for each in used), flush=True)
    os._exit(0)


# What measures it ---------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Samples the memory of a process and all below it: the sum of their proportional shares."""

    def __init__(self, process: int):
        super().__init__(daemon=True)
        self.process, self.peak, self.over = process, 0, threading.Event()

    def run(self) -> None:
        """Sample until it is over."""
        while not self.over.wait(0.2):
            self.peak = max(self.peak, sum(map(share, family(self.process))))


def family(process: int) -> list[int]:
    """List a process and those that it started."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in listed for each in family(int(child)))]


def share(process: int) -> int:
    """Return the bytes that a process holds; what it shares with others counts in parts."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure(side: str, data: Path, folder: Path) -> tuple[float, float, int]:
    """Return the seconds to the first step, by the clock and on the processors, and the most bytes."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    paths = [str(ROOT / "core"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PEFTKIT_CACHE": str(folder / "cache")}
    environment["HF_DATASETS_CACHE"] = str(folder / "datasets")
    command = [sys.executable, str(Path(__file__).resolve()), "--child", side, str(data), str(folder)]
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        watch = Watch(process.pid)
        watch.start()
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith(DONE)), "")
        seconds = time.perf_counter() - began
        watch.over.set()
        watch.join()
    if not line:
        sys.exit(f"{side} on {data} ended before its first step.")
    return seconds, float(line.split()[-1]), watch.peak


def compare(side: str, count: int, folder: Path, few: int) -> None:
    """Print a line for a cold start and one for a warm one."""
    data = folder / f"{count}.jsonl"
    if not data.is_file():
        write_rows(data, count)
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        for start in ("cold", "warm"):
            seconds, busy, peak = measure(side, data, own)
            show(count, side, start, seconds, busy, peak, peak - few)
    finally:
        shutil.rmtree(own)


def show(count: int, side: str, start: str, seconds: float, busy: float, peak: int, beyond: int) -> None:
    """Print a line of the table."""
    sizes = "".join(f"{size / 1e9:>10.2f}" for size in (peak, beyond))
    print(f"{count:>10,}{side:>10}{start:>7}{seconds:>10.1f}{busy:>12.1f}{sizes}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default=",".join(map(str, SIZES)))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--keep", type=Path, help="a folder for the rows, which stay there")
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "DATA", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.child:
        side, data, folder = asked.child
        SIDES[side](Path(data), Path(folder))
        return 1
    with tempfile.TemporaryDirectory(prefix="loading-") as temporary:
        folder = Path(asked.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        heads = ("rows", "side", "start", "seconds", "processor s", "peak GB", "beyond")
        print("".join(f"{head:>{width}}" for head, width in zip(heads, (10, 10, 7, 10, 12, 10, 10), strict=True)))
        write_rows(folder / "few.jsonl", FEW)
        for side in asked.sides.split(","):
            own = Path(tempfile.mkdtemp(dir=folder))
            seconds, busy, few = measure(side, folder / "few.jsonl", own)
            shutil.rmtree(own)
            show(FEW, side, "cold", seconds, busy, few, 0)
            for count in map(int, asked.rows.split(",")):
                compare(side, count, folder, few)
    return 0


if __name__ == "__main__":
    sys.exit(main())
