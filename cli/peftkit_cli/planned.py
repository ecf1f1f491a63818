"""How a plan is shown: what is trained, the label mask of an example, and what the run needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.visible import visible
from peftkit_cli import figures
from peftkit_cli.terminal import console, table

if TYPE_CHECKING:
    from rich.text import Text

    from peftkit.estimation.estimate import Estimate
    from peftkit.plan import Plan


def show(plan: Plan, run: Path) -> None:
    """Print the plan of a run that would be written to `run`."""
    screen = console()
    share = plan.trainable / plan.total if plan.total else 0.0
    lines = [
        ("model", f"{plan.model} ({plan.architecture})"),
        ("method", " + ".join(plan.methods)),
        *(("adapter", adapter) for adapter in plan.adapters),
        ("trained", f"{plan.trainable:,} of {plan.total:,} parameters ({share:.3%})"),
        (
            "examples",
            f"{plan.examples:,}" + (f" ({plan.dropped:,} dropped: empty target)" if plan.dropped else ""),
        ),
        ("steps", f"{plan.steps:,} ({plan.epochs:g} epochs, {figures.count(plan.tokens)} tokens)"),
        *(("rate", f"{rate:.4g}, {origin}") for rate, origin in plan.rates),
        ("memory", memory(plan.memory)),
        *([("", memory_plan(plan.memory))] if plan.memory.memory_plan is not None else []),
        ("run folder", str(run)),
    ]
    for name, value in lines:
        screen.print(visible(f"{name:<12}{value}"), markup=False, soft_wrap=True)
    screen.print()
    if plan.matched:
        rows = [(target, count, example) for target, (count, example) in plan.matched.items()]
        table(("target", "modules", "for example"), rows)
        screen.print()
    screen.print("The first example; what is trained on is", "marked:" if not screen.is_terminal else "highlighted:")
    screen.print(masked(plan.example, coloured=screen.is_terminal), soft_wrap=True)
    for notice in plan.notices:
        screen.print(visible(f"note: {notice}"), markup=False, soft_wrap=True)


def memory(estimate: Estimate) -> str:
    """Write an estimate of memory as its peak and what is there then."""
    parts = ", ".join(f"{name} {figures.known_size(there)}" for name, (_, there) in estimate.told().items())
    least = "about" if estimate.unknown is None else "at least"
    return f"{least} {figures.size(estimate.peak)} at the peak ({parts})"


def memory_plan(estimate: Estimate) -> str:
    """Write what a run gives up for memory, and how much it may take."""
    return f"of {figures.size(estimate.allowed or 0)} that may be taken: {estimate.memory_plan}"


def masked(example: Sequence[tuple[str, bool]], *, coloured: bool) -> Text:
    """Join the pieces of an example; trained text is highlighted, or stands between «» where there is no colour."""
    from rich.text import Text

    joined = Text()
    for piece, trained in example:
        text = visible(piece)
        if trained and not coloured:
            joined.append(f"«{text}»")
        else:
            joined.append(text, style="bold black on green" if trained else "dim")
    return joined
