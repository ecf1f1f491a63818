"""`peft doctor`: what this machine has for a run, and what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli.terminal import print_json, say, table

if TYPE_CHECKING:
    from peftkit.doctor import Diagnosis


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, device, precision, kernels and optional packages that are missing; reads no model."""
    from peftkit.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json({**asdict(found), "precision": found.precision._asdict()})
    else:
        show(found)


def show(found: Diagnosis) -> None:
    """Print what was found, a line for each fact, and a table of what is missing."""
    name, reason = found.precision
    precision = f"{name} ({reason.removeprefix(f'precision {name}: ')})" if reason else name
    facts = {
        **found.versions,
        "device": found.device,
        "threads": str(found.threads),
        "precision": precision,
        **found.kernels,
    }
    for name, value in facts.items():
        say(f"{name:<18}{value}")
    say("")
    if found.extras is None:
        say("optional packages: unknown, since peftkit is not installed; run `pip install .` in the checkout")
        return
    missing = [(extra.name, ", ".join(extra.lacking), extra.command) for extra in found.extras if extra.lacking]
    present = ", ".join(extra.name for extra in found.extras if not extra.lacking)
    say(f"optional packages that are installed: {present or 'none'}")
    if missing:
        table(("missing", "packages", "installed by"), missing)
