"""Math10K: word problems with worked answers from several sets (Hu et al. 2023, arXiv:2304.01933)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from peftkit.tasks.instructions import Instructions
from peftkit.tasks.task import TASKS


class Math10K(Instructions):
    """Solve a word problem step by step; scored is the last number of the answer, or the letter that is chosen.

    The published training file holds problems of the test sets of MAWPS (AddSub, MultiArith, SingleEq): scores on these
    say less than those on GSM8K, SVAMP and AQuA.
    """

    name = "math_10k"
    metrics = ("last_number",)
    max_new_tokens = 256
    short = (str, int, float)
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("math_10k.json", "math*.json"),
        "validation": ("math_10k.json", "math*.json"),
        "test": ("test.json",),
    }


TASKS.add(Math10K.name, Math10K())
