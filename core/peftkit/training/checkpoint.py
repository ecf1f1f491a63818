"""Checkpoint folders: tensors as safetensors and facts as JSON, checked by digest, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints
from torch import Tensor

from peftkit import files, schemas, tensor_file
from peftkit.errors import PeftkitError
from peftkit.schemas import Stored

PARTS = ("adapter", "optimizer", "random")
"""What every checkpoint holds; a run that keeps its best adapter adds the part `best`."""
LOG = "log.jsonl"
NAME = re.compile(r"step-(\d{8,})")

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Part = Annotated[str, StringConstraints(pattern=r"^[a-z]+$")]


class CheckpointFacts(Stored):
    """What `state.json` has to hold; the loop, the passes and the run add facts of their own."""

    step: int = Field(ge=1)
    sha256: dict[Part, Digest]
    """Of each part's file."""
    log: Digest | None = None
    """Of the run's log as far as the step; earlier versions did not keep it."""


def write(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any], log: bytes = b""
) -> Path:
    """Write the checkpoint of `step` into `folder`; returns its path. A whole one that is there already stays.

    `log` is what the run's log holds.
    """
    path = folder / f"step-{step:08d}"
    if path.exists() and whole(path):
        return path
    with files.new_folder(path, replace=True) as temporary:
        for name, tensors in parts.items():
            tensor_file.write_tensors(temporary / f"{name}.safetensors", tensors)
        files.write_bytes(temporary / LOG, log)
        digests = {name: digest((temporary / f"{name}.safetensors").read_bytes()) for name in parts}
        state = {**facts, "sha256": digests, "log": digest(log)}
        files.write_json(temporary / "state.json", {**state, "digest": digest_facts(state)})
    return path


def read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint's tensors by part and its facts; a damaged file is a PeftkitError that says what to do."""
    try:
        facts = check(path)
        return {name: tensor_file.read_tensors(path / f"{name}.safetensors") for name in facts["sha256"]}, facts
    except PeftkitError as error:
        raise PeftkitError(f"{error} {advice(path)}") from None


def check(path: Path) -> dict[str, Any]:
    """Hold the files of a checkpoint against its digests; returns its facts, or raises PeftkitError."""
    facts = schemas.read(path / "state.json", dict[str, Any])
    if facts.pop("digest", None) != digest_facts(facts):
        raise PeftkitError(damaged(path / "state.json"))
    known = CheckpointFacts.model_validate(schemas.check(CheckpointFacts, facts, str(path / "state.json")))
    if known.step != _step(path):
        raise PeftkitError(f"{path} holds step {known.step}, and its name says another one.")
    if absent := set(PARTS) - known.sha256.keys():
        raise PeftkitError(f"{path / 'state.json'} is not a checkpoint's: sha256 lacks {', '.join(sorted(absent))}.")
    digests = {f"{name}.safetensors": value for name, value in known.sha256.items()}
    for name, value in (digests | ({} if known.log is None else {LOG: known.log})).items():
        with files.explained("read", path / name):
            content = (path / name).read_bytes()
        if digest(content) != value:
            raise PeftkitError(damaged(path / name))
    return facts


def whole(path: Path) -> bool:
    """Say whether all files of a checkpoint are as they were written."""
    try:
        check(path)
    except PeftkitError:
        return False
    return True


def listed(folder: Path) -> list[Path]:
    """List the checkpoints in `folder`, oldest first; what has another name than theirs is left where it is."""
    return sorted((path for path in folder.glob("step-*") if _step(path)), key=_step) if folder.is_dir() else []


def _step(path: Path) -> int:
    """Return the step in a checkpoint's name; 0 for another name."""
    named = NAME.fullmatch(path.name)
    return int(named[1]) if named else 0


def precision(folder: Path) -> str | None:
    """Return what the run of the newest checkpoint in `folder` is computed in; None where that is not told.

    A damaged checkpoint tells nothing here: it is refused when it is read.
    """
    try:
        facts = files.read_json(listed(folder)[-1] / "state.json")
    except (IndexError, PeftkitError):
        return None
    told = facts.get("precision") if isinstance(facts, dict) else None
    return told if told in ("fp32", "bf16", "fp16") else None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints (at least one stays)."""
    for path in listed(folder)[: -max(1, keep)]:
        with files.explained("remove", path):
            # Renamed first, so that a process killed here leaves no half-empty checkpoint among the whole ones.
            files.remove(path.rename(folder / f".{path.name}.old"))


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for path in files.leftovers(folder):
        with files.explained("remove", path):
            files.remove(path)


def damaged(file: Path) -> str:
    """Say that a checkpoint's file is not what was written."""
    return (
        f"{file} does not match the checksum in the checkpoint: it was changed or damaged after it was written, and "
        "may be copied again from where it was made."
    )


def advice(path: Path) -> str:
    """Say how a run goes on whose checkpoint at `path` is of no use: from the last whole one before it, if any."""
    earlier = [other for other in listed(path.parent) if _step(other) < _step(path)]
    older = next((other for other in reversed(earlier) if whole(other)), None)
    if older is None:
        return "No older checkpoint is left that is whole: begin another run with --output."
    remove = " ".join(shlex.quote(str(other)) for other in [*earlier[earlier.index(older) + 1 :], path])
    return f"Remove that folder to continue from {older.name}: `rm -r {remove}`, then the same command with --resume."


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_facts(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the facts' canonical JSON."""
    return digest(json.dumps(facts, sort_keys=True).encode())
