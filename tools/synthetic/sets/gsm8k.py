"""The bundled word problems, in the format of GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from peftkit import files
from synthetic.problems import Problem, invent_problem
from synthetic.sets import SETS


def write_answer(problem: Problem) -> str:
    """Return the worked solution with its calculator annotations and the line of the answer."""
    rows = []
    for step in problem.steps:
        rows.append(f"{step.before} {step.sum}=<<{step.sum}={step.result}>>{step.result} {step.after}".rstrip() + ".")
    return "\n".join([*rows, f"#### {problem.steps[-1].result}"])


@SETS.register("gsm8k")
def write_gsm8k(folder: Path, seed: int) -> None:
    """Write train.jsonl and test.jsonl; no question stands in both."""
    rng, seen = Random(f"{seed}/gsm8k"), set[str]()
    for split, count in (("test", 100), ("train", 800)):
        rows = []
        while len(rows) < count:
            problem = invent_problem(rng)
            if problem.question not in seen:
                seen.add(problem.question)
                row = {"question": problem.question, "answer": write_answer(problem)}
                rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        files.write_text(folder / f"{split}.jsonl", "".join(rows))
