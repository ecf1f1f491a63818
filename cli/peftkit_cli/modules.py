"""`peft modules`: the modules of a model, what targets match, and which methods it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument
from peftkit_cli.terminal import say, table, working

if TYPE_CHECKING:
    from peftkit.inspection import Branch, ModelView


def modules(
    source: Annotated[
        str, typer.Argument(metavar="MODEL|RECIPE", help="A model folder, Hugging Face id or bundled one, or a recipe.")
    ],
    overrides: OverrideArgument = None,
    targets: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Roles, groups or name patterns to mark and count.")
    ] = None,
) -> None:
    """Show a model's modules with their roles, what targets match, and the methods it takes; no weights are loaded."""
    from peftkit.inspection import inspect_model

    asked = [] if targets is None else [text.strip() for text in targets.split(",")]
    with working():
        view = inspect_model(source, overrides or (), asked)
    show(view)


def show(view: ModelView) -> None:
    """Print the tree, the table of targets, and the methods."""
    title = f"{view.model} ({view.architecture}), {view.parameters:,} parameters, {view.layers} layers"
    lines = [(depth, branch) for top in view.branches for depth, branch in top.lines()]
    marked = any(branch.marks for _, branch in lines)
    heads = ("module", "class", "weight", "role", "parameters", "note", *(["named by"] if marked else []))
    table(heads, [cells(depth, branch, marked) for depth, branch in lines], title)
    say("")
    rows = [(match.target, match.sites, figures.count(match.weights), match.first) for match in view.targets]
    table(("target", "modules", "weights", "for example"), rows)
    say(f"\nmethods that it takes, with their defaults ({len(view.suited)}): {', '.join(view.suited)}")
    for refusal in view.notices:
        say(f"note, of {some(refusal.methods)}: {refusal.reason}")
    if view.refusals:
        say("")
        table(("refused", "reason"), [(", ".join(refusal.methods), refusal.reason) for refusal in view.refusals])


def cells(depth: int, branch: Branch, marked: bool) -> list[str]:
    """Return the cells of a module's line, indented by its depth."""
    equal = "" if branch.beside == 1 else f" ({branch.beside} equal)"
    shape = "×".join(map(str, branch.shape))
    return [
        "  " * depth + branch.name + equal,
        branch.kind,
        shape,
        " ".join(branch.roles),
        figures.count(branch.parameters) if branch.parameters else "",
        "; ".join(branch.notes),
        *([", ".join(branch.marks)] if marked else []),
    ]


def some(names: tuple[str, ...]) -> str:
    """Name the first three of many."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
