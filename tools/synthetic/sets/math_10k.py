"""The bundled instructions with worked answers, in the format of Math10K (Hu et al. 2023, arXiv:2304.01933)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from peftkit import files
from synthetic.problems import invent_problem
from synthetic.sets import SETS


@SETS.register("math_10k")
def write_math_10k(folder: Path, seed: int) -> None:
    """Write math_10k.json and test.json; no instruction stands in both."""
    rng, seen = Random(f"{seed}/math_10k"), set[str]()
    for name, count in (("test", 20), ("math_10k", 120)):
        rows = []
        while len(rows) < count:
            problem = invent_problem(rng)
            if problem.question in seen:
                continue
            seen.add(problem.question)
            steps = [f"{step.before} {step.sum} = {step.result} {step.after}".rstrip() + "." for step in problem.steps]
            answer = problem.steps[-1].result
            output = " ".join([*steps, f"The answer is {answer}."])
            rows.append({"instruction": problem.question, "input": "", "output": output, "answer": f"{answer}"})
        files.write_text(folder / f"{name}.json", json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
