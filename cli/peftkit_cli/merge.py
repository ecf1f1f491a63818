"""`peft merge`: write the trained adapter into the weights."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit_cli.arguments import BaseArgument, OutputFolder, RunArgument, TrustOption, agree, opened_alone
from peftkit_cli.report import show_report


def merge(
    run: RunArgument,
    output: OutputFolder,
    overrides: BaseArgument = None,
    into: Annotated[
        str,
        typer.Option(
            metavar="original|dequantized",
            help="Of a run on a quantized base: the original weights, or those that the packed ones stand for.",
        ),
    ] = "original",
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Write the merged weights packed again in the formats of the base.")
    ] = False,
    bound: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT", help="What --requantize may change a logit by, as a fraction of the largest (0.3)."
        ),
    ] = None,
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Of a run on a pruned base: set pruned weights to zero again.")
    ] = False,
    trust: TrustOption = False,
) -> None:
    """Merge a run's adapter into its model's weights, compare the two, and write a folder that transformers opens."""
    from peftkit.export import merge as merge_run

    run = opened_alone(run, overrides)
    agree([run], trust)

    show_report(merge_run(run, output, into=into, requantize=requantize, bound=bound, keep_zeros=keep_zeros), output)
