"""Packed models on disk, so that a second start reads what the first one packed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.models import shardwise
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import shape

VERSION = 1
SMALLEST = 64 << 20
"""Bytes of the weight files from which on a model is kept: packing a smaller one is as quick as reading it."""
WEIGHTS, FACTS = "packed.safetensors", "packed.json"


def folder(paths: list[Path], description: Mapping[str, Any]) -> Path | None:
    """Return where the packed form of these weight files is kept; None for small ones.

    The name follows from the files' places, sizes and times and from `description` (formats, options, dtype). The
    parent is `PEFTKIT_CACHE`, or else `peftkit` in the user's cache folder.
    """
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    if sum(size for _, size, _ in stats) < SMALLEST:
        return None
    key = hashlib.sha256(json.dumps([VERSION, stats, description], sort_keys=True, default=str).encode()).hexdigest()
    own = os.environ.get("PEFTKIT_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftkit"
    return root / "packed" / key[:32]


def write(where: Path, model: nn.Module, fingerprint: str) -> None:
    """Keep a packed model; a full or read-only disk is told and does not stop the run."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with files.new_folder(where, replace=True) as temporary:
            tied: set[int] = set()
            tensors = {}
            for name, tensor in model.state_dict().items():
                if tensor.data_ptr() not in tied:
                    tensors[name] = tensor.contiguous()
                tied.add(tensor.data_ptr())
            save_file(tensors, temporary / WEIGHTS, {"format": "pt"})
            facts = {"fingerprint": fingerprint, "sha256": checksum(temporary / WEIGHTS)}
            files.write_json(temporary / FACTS, facts)
    except (PeftkitError, SafetensorError) as error:
        logging.getLogger("peftkit").warning("the packed model is not kept for the next start: %s", error)


def read(
    where: Path, paths: list[Path], model: nn.Module, packed: Mapping[str, Quantizer], dtype: torch.dtype
) -> str | None:
    """Fill a model made under `without_weights` from what `write` kept of the files `paths`; return its fingerprint.

    None where nothing is kept. What is damaged is removed with a notice, and None is returned: `model` is untouched.
    """
    if not (where / FACTS).is_file():
        return None
    try:
        facts = files.read_json(where / FACTS)
        if checksum(where / WEIGHTS) != facts["sha256"]:
            raise PeftkitError(f"{where / WEIGHTS} is damaged: its checksum differs.")
        tensors = files.read_tensors(where / WEIGHTS)
    except (PeftkitError, KeyError, TypeError) as error:
        logging.getLogger("peftkit").warning("%s The model is packed again from its own files.", error)
        shutil.rmtree(where, ignore_errors=True)
        return None
    homes = shardwise.places(paths)
    for path, quantizer in packed.items():
        module = model.get_submodule(path)
        parent, _, name = path.rpartition(".")
        own = [key for key in tensors if key.rpartition(".")[0] == path and not key.endswith(".bias")]
        parts = {key.rpartition(".")[2]: tensors.pop(key) for key in own}
        layer = PackedLinear(parts, cast("tuple[int, int]", shape(module)), dtype, quantizer)
        layer.bias = cast(Any, module).bias
        key = f"{path}.weight"
        layer.source = partial(shardwise.again, homes[key], key, dtype, isinstance(module, Conv1D))
        setattr(model.get_submodule(parent), name, layer)
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        module = model.get_submodule(path)
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    cast(Any, model).tie_weights()
    return str(facts["fingerprint"])


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    state = hashlib.sha256()
    with files.explained("read", path), path.open("rb") as file:
        while piece := file.read(1 << 24):
            state.update(piece)
    return state.hexdigest()
