"""The forms in which a run is written for other software, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftkit.registry import Registry

Format = Callable[[Path, Path], dict[str, Any]]
"""Takes the run folder and the output folder; returns the report."""

FORMATS: Registry[Format] = Registry("format", "peftkit.export")


def export(run: Path, output: Path, format: str) -> dict[str, Any]:
    """Write the run's result to the new folder `output` in a registered format and return the report.

    The report has `format`, `output`, `base`, `methods`, `max_difference` (largest difference between the logits of
    the written and the trained model on sample prompts), `scale` (largest logit), `bound` (the difference at which the
    export would have been refused; a format that is not exact has none) and what the format adds. Nothing is left at
    `output` on an error.
    """
    return FORMATS[format](Path(run), Path(output))
