"""Export format `merged`: one ordinary model folder, for plain transformers and everything that reads its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.export import FORMATS
from peftkit.export.model_folder import write_merged
from peftkit.export.trained import open_run


@FORMATS.register("merged")
def merged(run: Path, output: Path) -> dict[str, Any]:
    """Write the base model with the run's adapter merged in, in the dtype of the original weights."""
    with files.new_folder(output) as folder:
        trained = open_run(run)
        report = write_merged(trained, folder, trained.dtype)
    return {"format": "merged", "output": str(output), **report}
