"""E2E NLG challenge: restaurant descriptions from meaning representations (Novikova et al. 2017, arXiv:1706.09254)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftkit.data.example import Example, question
from peftkit.data.hub import HubDataset
from peftkit.data.records import read_csv, text
from peftkit.tasks.task import TASKS, Task


class E2E(Task):
    """Describe a restaurant from a meaning representation such as `name[…], eatType[…]`."""

    name = "e2e"
    hub = HubDataset("tuetschek/e2e_nlg")
    metrics = ("bleu", "nist", "meteor", "rouge_l", "cider", "coco_bleu", "ter", "chrf")
    headline = "BLEU-4"
    max_new_tokens = 128
    stop = ("\n",)
    suffix = ".csv"
    files = {
        "train": ("trainset.csv",),
        "validation": ("devset.csv",),
        "test": ("testset_w_refs.csv",),
    }

    def read_file(self, path: Path) -> list[Example]:
        """Read a CSV file with the columns `mr` and `ref`, one example per record."""
        return [
            self._example(f"{path.name}:{line}", f"{path}, line {line}", record["mr"], record["ref"])
            for line, record in read_csv(path, ("mr", "ref"))
        ]

    def from_records(self, records: Iterable[Mapping[str, Any]], split: str) -> list[Example]:
        """Read the columns `meaning_representation` and `human_reference`."""
        return [
            self._example(
                f"{split}:{row}",
                f"{self.hub}, {split} row {row}",
                record.get("meaning_representation"),
                record.get("human_reference"),
            )
            for row, record in enumerate(records)
        ]

    def _example(self, identity: str, place: str, meaning: Any, reference: Any) -> Example:
        return question(identity, text(meaning, place, "mr").strip(), text(reference, place, "ref").strip())


TASKS.add(E2E.name, E2E())
