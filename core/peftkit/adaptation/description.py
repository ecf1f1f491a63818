"""What `adapter.json` says of the tensors beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit import files, schemas
from peftkit.errors import PeftkitError
from peftkit.quantization.storage import Storage
from peftkit.schemas import Count, Stored, Text

FORMAT = 1
DESCRIPTION = "adapter.json"
OTHERWISE = "does not describe an adapter"
OBJECTIVE = "objective"
"""The key of the description, and the module's name in the adaptation."""
IMPORTED = "imported"
"""The key of the description of an adapter that another library trained."""


class DescribedEntry(Stored):
    """An entry of a registry with its options."""

    name: Text
    options: dict[str, Any]


class DescribedBase(Stored):
    """The base model; earlier versions said less of it."""

    name: Text
    fingerprint: Text | None = None
    quantization: Storage | None = None


class DescribedChild(Stored):
    """Where an adapter was taken from that others were built from."""

    files: dict[str, Text]
    folder: Text | None = None
    fingerprint: Text | None = None


class DescribedImport(Stored):
    """The library that wrote an adapter, and the SHA-256 of its files by name."""

    library: Text
    files: dict[str, Text]


class AdapterDescription(Stored):
    """The whole file."""

    format: int
    methods: list[DescribedEntry]
    base: DescribedBase
    trainable_parameters: Count | None = None
    objective: DescribedEntry | None = None
    children: dict[str, DescribedChild] = {}
    combined: dict[str, Any] | None = None
    imported: DescribedImport | None = None


class DescribedVersion(Stored):
    """What every version of the file has."""

    format: int


def describe_adapter(folder: Path) -> dict[str, Any]:
    """Read `adapter.json`; a missing, damaged or newer one is a PeftkitError."""
    path = folder / DESCRIPTION
    with files.explained("read", path):
        there = path.is_file()
    if not there:
        raise PeftkitError(
            f"{folder} holds no adapter: there is no {DESCRIPTION} in it. Name the adapter folder of a run."
        )
    description = schemas.read(path, DescribedVersion, what=OTHERWISE)
    if description["format"] != FORMAT:
        raise PeftkitError(
            f"{path} has the format {description['format']!r}, and this version of peftkit reads {FORMAT}: upgrade it."
        )
    return schemas.check(AdapterDescription, description, f"{path} {OTHERWISE}")
