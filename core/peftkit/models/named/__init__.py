"""Models that are known by a name: what travels with the package or comes with another one, a file each.

An entry is a function that returns the model's folder or GGUF file, and raises PeftkitError with what to install where
it is not there. The first line of its docstring is its line in `peft list models`: what it is, and its licence.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from peftkit.errors import PeftkitError
from peftkit.registry import Registry

NAMED: Registry[Callable[[], Path]] = Registry("model", "peftkit.models.named")


def installed(package: str, suffix: str, model: str, advice: str) -> Path:
    """Return the one file ending in `suffix` of an installed package, whose code is not run.

    Raises PeftkitError, with `advice` on how to install it, where the package or the file is not there.
    """
    try:
        held = metadata.distribution(package).files or []
    except metadata.PackageNotFoundError:
        raise PeftkitError(
            f"model: {model} comes with the package {package}, which is not installed: {advice}"
        ) from None
    found = [Path(str(file.locate())) for file in held if file.name.endswith(suffix)]
    if len(found) != 1 or not found[0].is_file():
        raise PeftkitError(
            f"model: the installed package {package} holds {len(found)} files {suffix} instead of the one of {model}: "
            f"install it again: {advice}"
        )
    return found[0]
