"""`peft merge`: write the trained adapter into the weights."""

from __future__ import annotations

from peftkit_cli.arguments import OutputFolder, RunArgument
from peftkit_cli.report import show_report


def merge(run: RunArgument, output: OutputFolder) -> None:
    """Merge a run's adapter into its model's weights, compare the two, and write a folder that transformers opens."""
    from peftkit.export import merge as merge_run

    show_report(merge_run(run, output), output)
