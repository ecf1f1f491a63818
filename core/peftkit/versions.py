"""The versions of Python and of the libraries that decide the numbers of a run."""

from __future__ import annotations

import platform
from importlib import metadata

from peftkit import __version__


def versions() -> dict[str, str]:
    """Return the version of each by its name."""
    names = ("torch", "transformers", "tokenizers", "safetensors")
    numbers = {"peftkit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers
