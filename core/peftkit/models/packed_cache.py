"""Packed models on disk, so that a second start reads what the first one packed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models import layerwise, packed_folder
from peftkit.models.contents import Contents
from peftkit.models.quantize import Quantization
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.storage import Storage
from peftkit.tensor_file import Tensors

VERSION = 3
CHOICE = "choice.json"
"""In a folder of its own: the formats that a budget was allocated to."""
SMALLEST = 64 << 20
"""Bytes of the weight files from which on a model is kept: packing a smaller one is as quick as reading it."""


def folder(paths: list[Path], description: Mapping[str, Any]) -> Path | None:
    """Return where the packed form of these weight files is kept; None for small ones.

    The name follows from the files' places, sizes and times and from `description` (formats, options, dtype).
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    if sum(size for _, size, _ in stats) < SMALLEST:
        return None
    key = hashlib.sha256(json.dumps([VERSION, stats, description], sort_keys=True, default=str).encode()).hexdigest()
    return files.cache_folder() / "packed" / key[:32]


def keep_choice(where: Path, storage: Mapping[str, Any]) -> None:
    """Keep the description of chosen formats; a full or read-only disk is a warning and does not stop the run."""
    try:
        with files.new_folder(where, replace=True) as temporary:
            files.write_json(temporary / CHOICE, dict(storage))
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("the chosen formats are not kept for the next start: %s", error)


def choice(where: Path) -> dict[str, Any] | None:
    """Return what `keep_choice` kept; None where there is nothing or, with a notice, where it is damaged."""
    try:
        kept = schemas.read(where / CHOICE, Storage) if (where / CHOICE).is_file() else None
        return None if kept is None or not Quantization.described(kept).packs else kept
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("%s The formats are chosen again.", error)
        return None


def write(where: Path, model: nn.Module, fingerprint: str, storage: Mapping[str, Any]) -> None:
    """Keep a packed model; a full or read-only disk is a warning and does not stop the run."""
    try:
        with files.new_folder(where, replace=True) as temporary:
            packed_folder.write(temporary, model, fingerprint, storage)
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("the packed model is not kept for the next start: %s", error)


def read(
    where: Path, held: Sequence[Tensors], model: nn.Module, packed: Mapping[str, Quantizer], dtype: torch.dtype
) -> str | None:
    """Fill a model made under `without_weights` from what `write` kept of what `held` has; return its fingerprint.

    None where nothing is kept. What is damaged is removed with a notice, and None is returned: `model` is untouched.
    """
    if not packed_folder.is_packed(where):
        return None
    contents = Contents(model, held)
    stacks = {site.id: site for site in Layout(model).stacks}

    def source(path: str) -> list[Callable[[], Tensor]]:
        if path in stacks:
            return layerwise.readers_of(stacks[path], contents.places.get(path) or contents.merged[path], dtype)
        transposed = isinstance(model.get_submodule(path), Conv1D)
        return [partial(layerwise.read_weight, contents.places[f"{path}.weight"], dtype, transposed)]

    try:
        return packed_folder.fill(model, where, packed, dtype, source)
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("%s The model is packed again from its own files.", error)
        shutil.rmtree(where, ignore_errors=True)
        return None
