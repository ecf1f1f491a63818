"""How a model's weights are stored, as plain values: {format, options, modules}, modules by pattern."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftkit.quantization.foreign import READERS


def in_words(storage: Mapping[str, Any]) -> str:
    """Describe a storage in a few words."""
    words = [f"{key} {value}" for key, value in (storage.get("options") or {}).items()]
    words += [f"{pattern} as {choice['format']}" for pattern, choice in (storage.get("modules") or {}).items()]
    return f"{storage.get('format')} ({', '.join(words)})" if words else str(storage.get("format"))


def is_foreign(storage: Mapping[str, Any]) -> bool:
    """Say whether a storage is that of another library's checkpoint."""
    return any(reader.method == storage["format"] for _, reader in READERS.items())
