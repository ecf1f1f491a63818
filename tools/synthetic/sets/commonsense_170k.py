"""The bundled choices between answers, in the format of Commonsense170K (Hu et al. 2023, arXiv:2304.01933)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from peftkit import files
from synthetic.problems import invent_problem
from synthetic.sets import SETS

KINDS = ("answer", "solution", "ending", "option")


@SETS.register("commonsense_170k")
def write_commonsense_170k(folder: Path, seed: int) -> None:
    """Write commonsense_170k.json and test.json: which number answers a question, and whether one does."""
    rng, seen = Random(f"{seed}/commonsense_170k"), set[str]()
    for name, count in (("test", 20), ("commonsense_170k", 120)):
        rows = []
        while len(rows) < count:
            problem = invent_problem(rng)
            if problem.question not in seen:
                seen.add(problem.question)
                rows.append(_row(problem.question, problem.steps[-1].result, rng))
        files.write_text(folder / f"{name}.json", json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def _row(question: str, right: int, rng: Random) -> dict[str, str]:
    wrong = rng.choice([number for number in range(max(0, right - 9), right + 10) if number != right])
    if rng.random() < 0.25:
        answer = rng.choice(["true", "false"])
        claim = right if answer == "true" else wrong
        asked = f"Say true or false: {question} It is {claim}.\n\nAnswer format: true/false"
    else:
        kind, first = rng.choice(KINDS), rng.random() < 0.5
        one, two = (right, wrong) if first else (wrong, right)
        answer = f"{kind}{1 if first else 2}"
        asked = f"{question}\n\n{kind.title()}1: {one} {kind.title()}2: {two}\n\nAnswer format: {kind}1/{kind}2"
    return {"instruction": asked, "input": "", "output": f"the correct answer is {answer}", "answer": answer}
