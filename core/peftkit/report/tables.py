"""A comparison as tables: the short one that is shown, Markdown, and CSV with every figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftkit.comparison import Comparison, Row, Spread

NONE = "–"


def heads(comparison: Comparison) -> list[str]:
    """Return the heads of the table that is shown."""
    size = ["size"] if any(row.note for row in comparison.rows) else []
    ratios = [f"step time / {short(comparison.reference)}", f"memory / {short(comparison.reference)}"]
    return ["method", *size, comparison.headline, "validation loss", "trainable", "stored", *ratios]


def cells(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table that is shown: the base first, then from the best score down."""
    sized = any(row.note for row in comparison.rows)
    return [_cells(comparison, row, sized) for row in (comparison.base, *comparison.measured)]


def _cells(comparison: Comparison, row: Row, sized: bool) -> list[str]:
    like = next((other for other in comparison.rows if other.label == comparison.reference), None)
    score = row.scores.get(comparison.headline)
    return [
        row.label,
        *([row.note or NONE] if sized else []),
        spread(score, 4),
        spread(row.validation, 3),
        NONE if row.trainable is None else f"{row.trainable:,}",
        NONE if row.stored is None else f"{row.stored:,}",
        ratio(row.step_s, like.step_s if like else None),
        ratio(row.memory, like.memory if like else None),
    ]


def short(label: str) -> str:
    """Return a label without its options."""
    return label.partition(" (")[0]


def names(rows: Sequence[Row]) -> list[str]:
    """Return labels for a picture: without options where that still tells the rows apart."""
    brief = [short(row.label) for row in rows]
    return brief if len(set(brief)) == len(brief) else [row.label for row in rows]


def spread(value: Spread | None, digits: int) -> str:
    """Write a mean, and its spread over seeds where there is one."""
    if value is None:
        return NONE
    told = f"{value.mean:.{digits}f}"
    return told if value.deviation is None else f"{told} ± {value.deviation:.{digits}f}"


def ratio(value: float | None, reference: float | None) -> str:
    """Write a ratio to the reference's figure."""
    return NONE if value is None or not reference else f"{value / reference:.2f}"


def markdown(comparison: Comparison) -> str:
    """Write the whole report as Markdown, the picture beside it."""
    facts = [f"- {name}: {value}" for name, value in comparison.setup.items()]
    parts = [
        f"# {comparison.title}",
        "\n".join(facts),
        grid(heads(comparison), cells(comparison)),
        told(comparison),
        "![Loss curves, and scores against stored parameters](comparison.png)",
        "## All scores",
        grid(*all_scores(comparison)),
    ]
    failed = [f"- {row.label}: {row.reason}" for row in comparison.rows if row.reason]
    parts += ["## Left out", "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def told(comparison: Comparison) -> str:
    """Say how the table is to be read."""
    deviation = " ± is the standard deviation over seeds." if comparison.setup["seeds"] != "1" else ""
    return (
        "The base is the model before training. Stored are the numbers in the saved adapter. Step time is the median "
        "over optimizer steps and memory the peak of training, the model and the libraries included, both as ratios to "
        f"{comparison.reference}.{deviation}"
    )


def all_scores(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table with every score of the whole set; those of its parts are in the CSV file."""
    found = list(comparison.base.scores) or list(comparison.measured[0].scores if comparison.measured else ())
    names = [name for name in found if "/" not in name]
    rows = [[r.label, *(spread(r.scores.get(n), 4) for n in names)] for r in (comparison.base, *comparison.measured)]
    return ["method", *names], rows


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table as Markdown."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(comparison: Comparison) -> str:
    """Write every figure of every row as CSV; a spread has its own column, what is not known is empty."""
    scores = list(comparison.base.scores) or list(comparison.measured[0].scores if comparison.measured else ())
    figures = ["trainable", "stored", "validation_loss", "validation_loss_deviation", "step_s", "peak_memory_bytes"]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["method", "note", "seeds", *figures, *(f"{n}{end}" for n in scores for end in ("", "_deviation"))])
    for row in (comparison.base, *comparison.rows):
        seeds = next((value.count for value in row.scores.values()), 0)
        values = [row.trainable, row.stored, *_pair(row.validation), row.step_s, row.memory]
        values += [figure for name in scores for figure in _pair(row.scores.get(name))]
        note = "; ".join(text for text in (row.note, row.reason) if text)
        writer.writerow([row.label, note, seeds, *("" if value is None else f"{value:.10g}" for value in values)])
    return written.getvalue()


def _pair(value: Spread | None) -> tuple[float | None, float | None]:
    return (None, None) if value is None else (value.mean, value.deviation)
