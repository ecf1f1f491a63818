"""Checkpoint folders: tensors as safetensors and facts as JSON, checked by digest, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit import files, tensor_file
from peftkit.errors import PeftkitError

PARTS = ("adapter", "optimizer", "random")
"""What every checkpoint holds; a run that keeps its best adapter adds the part `best`."""


def write(folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `step` into `folder`; returns its path. One that is there already stays."""
    path = folder / f"step-{step:08d}"
    if path.exists():
        return path
    with files.new_folder(path) as temporary:
        for name, tensors in parts.items():
            tensor_file.write_tensors(temporary / f"{name}.safetensors", tensors)
        digests = {name: digest((temporary / f"{name}.safetensors").read_bytes()) for name in parts}
        state = {**facts, "sha256": digests}
        files.write_json(temporary / "state.json", {**state, "digest": digest_facts(state)})
    return path


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint's tensors by part and its facts; a damaged file is a PeftkitError that says what to do."""
    facts = files.read_json(path / "state.json")
    if not isinstance(facts, dict) or facts.pop("digest", None) != digest_facts(facts):
        raise PeftkitError(damaged(path, "state.json"))
    parts = {}
    for name in facts["sha256"]:
        file = path / f"{name}.safetensors"
        with files.explained("read", file):
            content = file.read_bytes()
        if digest(content) != facts["sha256"][name]:
            raise PeftkitError(damaged(path, file.name))
        parts[name] = tensor_file.read_tensors(file)
    return parts, facts


def listed(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints (at least one stays)."""
    for path in listed(folder)[: -max(1, keep)]:
        with files.explained("remove", path):
            # Renamed first, so that a process killed here leaves no half-empty checkpoint among the whole ones.
            shutil.rmtree(path.rename(folder / f".{path.name}.old"))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for path in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        with files.explained("remove", path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def damaged(path: Path, file: str) -> str:
    """Say that a checkpoint's file is not what was written, and which older checkpoint can be used."""
    older = [other for other in listed(path.parent) if other < path]
    advice = (
        f"Remove that folder to continue from {older[-1].name}" if older else "No older checkpoint is left: start anew"
    )
    return (
        f"{path / file} does not match the checksum in the checkpoint: it was changed or damaged after it was written. "
        f"{advice}, or copy the file again from where it was made."
    )


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_facts(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the facts' canonical JSON."""
    return digest(json.dumps(facts, sort_keys=True).encode())
