"""Carry a run's adapter to other software: merged into the weights, or in another library's adapter format."""

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
    export would have been refused) and what the format adds. Nothing is left at `output` on an error.
    """
    return FORMATS[format](Path(run), Path(output))


def merge(run: Path, output: Path) -> dict[str, Any]:
    """Merge the run's adapter into its base model's weights and write a model folder; see `export`."""
    return export(run, output, "merged")
