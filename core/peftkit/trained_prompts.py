"""Soft prompts that other runs have trained, as starts of new ones: rows, and what they were trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit import files, tensor_file
from peftkit.errors import PeftkitError

NAMES = ("P", "E")
"""What saved prompts of free rows call them."""


@dataclass(frozen=True)
class TrainedPrompt:
    """The rows [length, width] of a run's soft prompt."""

    run: str
    rows: Tensor
    base: Mapping[str, Any]
    """The `name` and `fingerprint` of the model that it was trained for."""
    digest: str
    """SHA-256 of the file with the rows."""

    def check_base(self, method: str, base: Mapping[str, Any]) -> None:
        """Refuse a prompt of another model than `base`, where both are known by their fingerprints."""
        marks = self.base.get("fingerprint"), base.get("fingerprint")
        if None not in marks and marks[0] != marks[1]:
            raise PeftkitError(
                f"{method}: the prompt in {self.run} was trained for another base model ({self.base.get('name')}), "
                "whose weights differ: name a run of the same base."
            )


def read(method: str, run: str) -> TrainedPrompt:
    """Read the prompt of a run or adapter folder; PeftkitError where there is none of free rows."""
    place = Path(files.expanded(run))
    folder = next((each for each in (place / "adapter", place) if (each / "adapter.json").is_file()), None)
    if folder is None:
        raise PeftkitError(f"{method}: {run} is neither a run that has ended nor an adapter folder: name one.")
    path = folder / "adapter.safetensors"
    with files.explained("read", path):
        described = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # Also where adapters are outlined without memory.
    with torch.device("cpu"):
        tensors = tensor_file.read_tensors(path)
    found = [x.float() for key, x in tensors.items() if key.rpartition("/")[2] in NAMES and x.ndim == 2]
    if len(found) != 1:
        methods = " + ".join(each["name"] for each in described["methods"])
        raise PeftkitError(
            f"{method}: the adapter in {run} ({methods}) holds no soft prompt of free rows: name a run of "
            "prompt-tuning."
        )
    return TrainedPrompt(run, found[0], described["base"], digest)


def similarity(one: Tensor, other: Tensor, kind: str) -> float:
    """Return the cosine of two prompts' means (`mean`), or the mean cosine of each row with each (`tokens`)."""
    if kind == "mean":
        return float(F.cosine_similarity(one.mean(0), other.mean(0), dim=0))
    return float((F.normalize(one, dim=1) @ F.normalize(other, dim=1).T).mean())


def nearest(target: TrainedPrompt, sources: Sequence[TrainedPrompt], kind: str) -> TrainedPrompt:
    """Return the source whose prompt is most similar to the target's; the first of equals."""
    return max(sources, key=lambda source: similarity(target.rows, source.rows, kind))
