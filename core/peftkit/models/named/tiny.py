"""The model that travels with the package."""

from __future__ import annotations

from pathlib import Path

from peftkit.models.named import NAMED

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


@NAMED.register("bundled/tiny")
def tiny() -> Path:
    """Two million weights trained on generated text; travels with the package; Apache-2.0."""
    return BUNDLED / "tiny"
