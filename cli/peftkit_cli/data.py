"""`peft data show`: a recipe's examples as the model is given them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli import figures
from peftkit_cli.arguments import OverrideArgument, RecipeArgument
from peftkit_cli.terminal import console, say, working

if TYPE_CHECKING:
    from numpy import ndarray
    from rich.text import Text

    from peftkit.inspection import Look, Seen, TokenPiece

BORDER = "│"
"""Stands between tokens where there is no colour."""
SHADES = {True: ("bold black on green", "bold black on bright_green"), False: ("dim", "dim on grey23")}
"""Of tokens that are trained on and others, in turns, so that their borders are seen."""

app = typer.Typer(help="Look at a recipe's data.", no_args_is_help=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Look at the examples of a recipe as the model sees them."""
    if context.invoked_subcommand is None:
        raise PeftkitError("found `data` without what to do; allowed: show, as in `peft data show RECIPE`.")


@app.command("show", short_help="Show examples, lengths, duplicates and what was dropped or cut.")
def show(
    recipe: RecipeArgument,
    overrides: OverrideArgument = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="The numbers of the examples to show, from 1; by default the first three."),
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
) -> None:
    """Show examples token by token as the model sees them, and what is in the split; no weights are loaded."""
    numbers = None if rows is None else parsed(rows)
    from peftkit.recipe import load

    loaded = load(recipe, overrides or ())
    from peftkit.inspection import look

    with working() as tell:
        seen = look(loaded, split, numbers, tell)
    show_split(seen)
    for example in seen.seen:
        show_example(example)


def parsed(rows: str) -> list[int]:
    """Read numbers of examples, such as 3,17."""
    texts = [text.strip() for text in rows.split(",")]
    wrong = next((text for text in texts if not (text.isdecimal() and text.isascii() and len(text) < 16)), None)
    if wrong is not None:
        raise PeftkitError(f"--rows: found '{wrong}' in '{rows}'; allowed: numbers of examples from 1, such as 3,17.")
    return [int(text) for text in texts]


def show_split(look: Look) -> None:
    """Print what is in the split: sizes, a histogram of lengths, repeats, and what was dropped or cut."""
    total = int(look.lengths.sum())
    share = f" ({look.trained / total:.1%})" if total else ""
    lines = [
        ("dataset", f"{look.dataset}, split {look.split}, template {look.template}"),
        ("examples", f"{look.examples:,} with {look.inputs:,} different prompts"),
        ("rows", f"{len(look.lengths):,} of at most {look.max_length:,} tokens (train.max_length)"),
        ("tokens", f"{total:,}, trained on: {look.trained:,}{share}"),
        ("duplicates", repeats(look)),
        *((fate.what.partition(":")[0], told(fate.what, fate.count, fate.first)) for fate in look.fates),
    ]
    if not look.fates:
        lines.append(("dropped", "nothing, and nothing is cut"))
    for name, value in lines:
        say(f"{name:<12}{value}")
    for notice in look.notices:
        say(f"note: {notice}")
    if len(look.lengths):
        say(f"\ntokens of a row: {quantiles(look.lengths)}")
        for line in figures.histogram(look.lengths.tolist()):
            say(f"  {line}")


def repeats(look: Look) -> str:
    """Say how many examples are the same as an earlier one, and which are the first."""
    if not look.repeats:
        return "none"
    pairs = ", ".join(f"{later} is {earlier}" for later, earlier in look.repeated)
    more = ", …" if look.repeats > len(look.repeated) else ""
    verb = "repeats" if look.repeats == 1 else "repeat"
    return f"{counted(look.repeats)} {verb} an earlier one: {pairs}{more}"


def told(what: str, count: int, first: Sequence[str]) -> str:
    """Say what became of so many examples, why, and which are the first."""
    more = ", …" if count > len(first) else ""
    return f"{counted(count)}: {what.partition(': ')[2]} ({', '.join(first)}{more})"


def counted(count: int) -> str:
    """Write a number of examples."""
    return f"{count:,} example{'' if count == 1 else 's'}"


def quantiles(lengths: ndarray) -> str:
    """Say how long rows are."""
    ordered = sorted(lengths.tolist())
    at = {share: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95)}
    return (
        f"{ordered[0]:,} to {ordered[-1]:,}, half of them up to {at[0.5]:,}, 95% up to {at[0.95]:,}, "
        f"mean {sum(ordered) / len(ordered):.1f}"
    )


def show_example(example: Seen) -> None:
    """Print an example token by token."""
    screen = console()
    how = "highlighted" if screen.is_terminal else "between «»"
    label = "" if example.label is None else f", label {example.label}"
    say(f"\nexample {example.number} ({example.id}){label}")
    if example.fate is not None:
        say(example.fate)
    for row in example.rows:
        trained = sum(piece.tokens for piece in row if piece.trained)
        what = f"trained on: {trained}, {how}" if trained else "none of them to predict"
        say(f"{sum(piece.tokens for piece in row)} tokens, {what}")
        screen.print(painted(row) if screen.is_terminal else plain(row), soft_wrap=True)


def plain(row: Sequence[TokenPiece]) -> Text:
    """Join tokens with a line between them; what is trained on stands between «»."""
    from rich.text import Text

    joined, before = "", False
    for position, piece in enumerate(row):
        joined += ("»" if before and not piece.trained else "") + (BORDER if position else "")
        joined += ("«" if piece.trained and not before else "") + shown(piece.text)
        before = piece.trained
    return Text(joined + ("»" if before else ""))


def painted(row: Sequence[TokenPiece]) -> Text:
    """Join tokens in alternating shades of what is trained on and what is not."""
    from rich.text import Text

    joined = Text()
    for position, piece in enumerate(row):
        joined.append(shown(piece.text), style=SHADES[piece.trained][position % 2])
    return joined


def shown(text: str) -> str:
    """Write the text of a token so that its line ends are seen, and nothing of it steers the terminal."""
    from peftkit.visible import visible

    return visible(text).replace("\n", "⏎\n").replace("\t", "⇥\t")
