"""The versions on which the numbers of a run depend."""

from __future__ import annotations

import platform
from importlib import metadata

from peftkit import __version__


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide the numbers."""
    names = ("torch", "transformers", "tokenizers", "safetensors")
    installed = {"peftkit": __version__, "python": platform.python_version()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
