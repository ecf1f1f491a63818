"""How the report of a merge or an export is shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit_cli.terminal import say


def show_report(report: Mapping[str, Any], output: Path) -> None:
    """Print what was written and measured, a line each."""
    for name, value in report.items():
        if isinstance(value, (int, str, float, bool)):
            shown = f"{value:.3g}" if isinstance(value, float) else value
            say(f"{name.replace('_', ' ')}: {shown}")
    say(f"written to {output}")
