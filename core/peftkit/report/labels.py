"""What methods are called in tables and pictures."""

from __future__ import annotations

from typing import Any

from peftkit.method import Method


def describe(method: Method) -> str:
    """Name a method with the options that are not its defaults: `lora (rank 16, targets linear)`."""
    defaults = type(method).from_options({}).options()
    changed = {key: value for key, value in method.options().items() if value != defaults[key]}
    options = ", ".join(f"{key} {written(value)}" for key, value in changed.items())
    return f"{method.name} ({options})" if options else method.name


def written(value: Any) -> str:
    """Write an option's value: numbers short, lists joined by `+`."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
