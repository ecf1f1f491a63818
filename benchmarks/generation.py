"""Sentences a second over the whole E2E test file: ours beside transformers' own `generate`, in turns in one run.

`python benchmarks/generation.py [--e2e FOLDER] [--run RUN] [--beams 10] [--rounds 3]`; the folder has the official
files, without it the bundled set is taken. Without a run, a LoRA run of `bundled/tiny` is trained first (`--steps`).
The candidates, at one batch size and with the same settings, ends and limit; no stop texts, which cost transformers
more:

- `each row`: transformers on every row of the file, as a plain loop over it does: a row for each reference;
- `distinct`: transformers on the distinct inputs, the longest first;
- `distinct, merged`: the same, with the adapter merged into the weights;
- `peft eval`: ours on every row, in the form in which `peft eval` loads the run.

From the first to the second is what knowing equal inputs gains, which is also open to transformers; from the second to
the last what the decoder gains, merging included; from the third to the last, without that. The texts of all must be
equal, up to ties that rounding breaks, which are counted. The time is CPU time of one thread, the least of the rounds.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "core")]

from peftkit.adaptation import load_adapter  # noqa: E402
from peftkit.assembly import Assembled, read_run  # noqa: E402
from peftkit.data.template import Template  # noqa: E402
from peftkit.errors import PeftkitError  # noqa: E402
from peftkit.evaluation import prepare, settings_for  # noqa: E402
from peftkit.generation import Settings, generate  # noqa: E402
from peftkit.models.load import load as load_model  # noqa: E402
from peftkit.recipe import GenerationSection, load  # noqa: E402
from peftkit.tasks import TASKS, source  # noqa: E402
from peftkit.training import train  # noqa: E402

RECIPE = ROOT / "recipes" / "quickstart.yaml"
LORA_PAPER = {"length_penalty": 0.8, "no_repeat_ngram_size": 4}
Prompts = list[list[int]]


@dataclass
class Candidate:
    """A way to answer the file."""

    name: str
    answer: Callable[[], list[list[int]]]
    """Returns the answer's tokens for each prompt that it is given."""
    seconds: float = float("inf")
    answers: list[list[int]] | None = None

    def time(self) -> None:
        """Answer once and keep the least time."""
        began = time.process_time()
        self.answers = self.answer()
        self.seconds = min(self.seconds, time.process_time() - began)


def by_transformers(model: Any, prompts: Prompts, settings: Settings, pad_id: int, batch_size: int) -> list[list[int]]:
    """Answer with transformers' `generate`, prompts of like length together."""
    beams = {"num_beams": settings.num_beams} if settings.num_beams > 1 else {}
    if beams:
        beams |= {"length_penalty": settings.length_penalty, "no_repeat_ngram_size": settings.no_repeat_ngram_size}
    ends, answers = list(settings.ends or ()), {}
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        width = max(len(prompts[number]) for number in numbers)
        padding = [width - len(prompts[number]) for number in numbers]
        ids = [[pad_id] * pad + prompts[number] for pad, number in zip(padding, numbers, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        rows = model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=settings.max_new_tokens,
            do_sample=False,
            pad_token_id=pad_id,
            eos_token_id=ends,
            **beams,
        )
        for number, row in zip(numbers, rows[:, width:].tolist(), strict=True):
            answers[number] = row[: next((at for at, token in enumerate(row) if token in ends), None)]
    return [answers[number] for number in range(len(prompts))]


def train_run(folder: Path, data: Sequence[str], steps: int) -> Path:
    """Train a LoRA run of the bundled model."""
    keys = [f"train.max_steps={steps}", "train.epochs=null", "train.device=cpu", "train.precision=fp32"]
    print(f"training a LoRA run for {steps} steps …", file=sys.stderr)
    train(load(str(RECIPE), [*data, *keys]), folder)
    return folder


def attached(run: Path, subject: Assembled) -> Any:
    """Load the run's model with its adapter beside the weights."""
    loaded = load_model(subject.recipe.model, device="cpu", quantization=subject.recipe.quantization)
    load_adapter(loaded.model, run / "adapter", loaded.fingerprint, quantization=loaded.storage)
    return loaded.model.eval()


def every_row(recipe: Any, template: Template, tokenizer: Any, limit: int | None) -> Prompts:
    """Return the prompt of every row of the test file, or of the first `limit`."""
    examples = source.load(recipe.dataset, "test", grouped=False).examples[:limit]
    return [template.prompt_ids(example, tokenizer) for example in examples]


def candidates(run: Path, chosen: argparse.Namespace) -> list[Candidate]:
    """Return the ways to answer, each bound to its model and prompts."""
    recipe = read_run(run)
    subject = prepare(recipe, run / "adapter")
    if subject.precision != "fp32" or subject.device.type != "cpu":
        raise PeftkitError("the benchmark is for a run with train.device cpu and train.precision fp32.")
    merged, tokenizer = subject.model, subject.tokenizer
    beside = attached(run, subject)
    paper = LORA_PAPER if chosen.beams > 1 else {}
    section = GenerationSection(num_beams=chosen.beams, **paper)
    task = TASKS[recipe.dataset.name.removeprefix(source.PREFIX)]
    settings = settings_for(merged, tokenizer, task, subject.template, section)
    settings = Settings(**{**settings.__dict__, "stop": ()})
    rows = every_row(recipe, subject.template, tokenizer, chosen.limit)
    distinct = [list(prompt) for prompt in dict.fromkeys(map(tuple, rows))]
    place = {tuple(prompt): number for number, prompt in enumerate(distinct)}
    pad_id, size = tokenizer.pad_token_id, chosen.batch_size

    def spread(answers: list[list[int]]) -> list[list[int]]:
        return [answers[place[tuple(prompt)]] for prompt in rows]

    def theirs(model: Any, prompts: Prompts) -> list[list[int]]:
        return by_transformers(model, prompts, settings, pad_id, size)

    def ours() -> list[list[int]]:
        return [answer.ids for answer in generate(merged, tokenizer, rows, settings, batch_size=size)]

    print(f"{len(rows)} rows, {len(distinct)} distinct inputs, batch size {size}, {chosen.beams} beam(s)")
    sides = [
        Candidate("transformers, distinct", lambda: spread(theirs(beside, distinct))),
        Candidate("transformers, distinct, merged", lambda: spread(theirs(merged, distinct))),
        Candidate("peft eval", ours),
    ]
    return sides if chosen.skip_rows else [Candidate("transformers, each row", lambda: theirs(beside, rows)), *sides]


def report(sides: Sequence[Candidate], file: Path | None) -> None:
    """Print the table and the gains, and write the table where asked."""
    ours = sides[-1]
    assert ours.answers is not None
    count, rows = len(ours.answers), []
    for candidate in sides:
        assert candidate.answers is not None
        equal = sum(a == b for a, b in zip(candidate.answers, ours.answers, strict=True))
        rate, ratio = count / candidate.seconds, candidate.seconds / ours.seconds
        rows.append((candidate.name, f"{candidate.seconds:.3f}", f"{rate:.2f}", f"{ratio:.3f}", equal))
        print(
            f"{candidate.name:<32}{candidate.seconds:9.2f} s  {rate:9.1f} sentences/s  ours is {ratio:5.2f} x as fast  "
            f"{equal}/{count} texts equal"
        )
    by_name = {candidate.name.removeprefix("transformers, "): candidate.seconds for candidate in sides}
    if "each row" in by_name:
        print(f"of which equal inputs once: {by_name['each row'] / by_name['distinct']:.2f} x")
    print(f"of which merging and the decoder: {by_name['distinct'] / ours.seconds:.2f} x")
    print(f"of which the decoder alone: {by_name['distinct, merged'] / ours.seconds:.2f} x")
    if file is not None:
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerows([("candidate", "cpu_seconds", "sentences_per_second", "ratio_to_ours", "equal"), *rows])


def at_least_one(text: str) -> int:
    """Read a whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1 is wanted")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the candidates; exits with 2 on what cannot be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--e2e", type=Path, help="the folder of the official E2E files (default: the bundled set)")
    parser.add_argument("--run", type=Path, help="a LoRA run; its own data set is taken")
    parser.add_argument("--steps", type=at_least_one, default=300, help="training steps where no run is named")
    parser.add_argument("--beams", type=at_least_one, default=1, help="above 1: penalty 0.8, no repeated 4-grams")
    parser.add_argument("--batch-size", type=at_least_one, default=32)
    parser.add_argument("--rounds", type=at_least_one, default=3)
    parser.add_argument("--limit", type=at_least_one, help="take so many rows of the file")
    parser.add_argument("--skip-rows", action="store_true", help="leave out transformers on every row, the slowest")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = [f"dataset={{name: e2e, path: '{chosen.e2e}'}}"] if chosen.e2e else []
            run = chosen.run or train_run(Path(folder) / "run", data, chosen.steps)
            sides = candidates(run, chosen)
            for _ in range(chosen.rounds):
                for candidate in sides:
                    candidate.time()
            report(sides, chosen.csv)
    except PeftkitError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
