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
    export would have been refused; a format that is not exact has none) and what the format adds. Nothing is left at
    `output` on an error.
    """
    return FORMATS[format](Path(run), Path(output))


def merge(
    run: Path, output: Path, *, into: str = "original", requantize: bool = False, bound: float | None = None
) -> dict[str, Any]:
    """Merge the run's adapter into its base model's weights and write a model folder; see `export`.

    A run on a quantized base is merged `into` the original weights, or into the dequantized ones, which are what its
    adapter was trained on. The report of such a run adds the largest and the mean difference of the logits to those of
    the model as it was trained (`trained_max_difference`, `trained_mean_difference`; `meaning` says what the first is),
    and the same once the merged weights are packed again in the formats of the base (`requantized_...`). With
    `requantize` these packed weights are what is written, where the largest difference is within `bound` (0.3) of the
    largest logit (`requantized_bound`). Raises PeftkitError beyond that, and for both choices where the base was not
    quantized.
    """
    from peftkit.export.merged import merge_into

    return merge_into(Path(run), Path(output), into, requantize, bound)
