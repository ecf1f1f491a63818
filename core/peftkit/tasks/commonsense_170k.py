"""Commonsense170K: eight sets of choices between answers (Hu et al. 2023, arXiv:2304.01933)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from peftkit.tasks.instructions import Instructions
from peftkit.tasks.task import TASKS


class Commonsense170K(Instructions):
    """Choose an answer; scored is the first choice that the answer names: `true`, `answer2`, `ending1`, `option2` …"""

    name = "commonsense_170k"
    metrics = ("first_choice",)
    max_new_tokens = 32
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("commonsense_170k.json", "commonsense*.json"),
        "validation": ("commonsense_170k.json", "commonsense*.json"),
        "test": ("test.json",),
    }


TASKS.add(Commonsense170K.name, Commonsense170K())
