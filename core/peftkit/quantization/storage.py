"""How a model's weights are stored, as plain values: {format, options, modules}, modules by pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.quantization.foreign import READERS
from peftkit.schemas import Stored, Text


class StoredFormat(Stored):
    """The format of some weights."""

    format: Text
    options: dict[str, Any] | None = None


class Storage(StoredFormat):
    """What a file says of how weights are stored."""

    modules: dict[str, StoredFormat] | None = None
    calibrated: Text | None = None
    """The mark of the weights where they are pruned or examples have packed them."""
    pruning: dict[str, dict[str, Any]] | None = None
    """How weights were chosen that are zero, with all options, by its name."""


def in_words(storage: Mapping[str, Any]) -> str:
    """Describe a storage in a few words."""
    words = [f"{key} {value}" for key, value in (storage.get("options") or {}).items()]
    words += [f"{pattern} as {choice['format']}" for pattern, choice in (storage.get("modules") or {}).items()]
    words += [f"pruned by {name}" for name in storage.get("pruning") or {}]
    words += [f"calibrated {storage['calibrated'][:8]}"] if storage.get("calibrated") else []
    return f"{storage.get('format')} ({', '.join(words)})" if words else str(storage.get("format"))


def is_foreign(storage: Mapping[str, Any]) -> bool:
    """Say whether a storage is that of another library's checkpoint.

    A library's method may have the name of a format here; formats have options, and nothing is said of a library's.
    """
    named = any(reader.method == storage["format"] for _, reader in READERS.items())
    return named and not storage.get("options")
