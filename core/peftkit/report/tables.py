"""A comparison as tables: the short one that is shown, the page, and CSV with every figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from peftkit.report.document import Document, Facts, Heading, Paragraph, Picture, Points, Table
from peftkit.report.results import ComparedEntry, Comparison, Spread

NONE = "–"


def heads(comparison: Comparison) -> list[str]:
    """Return the heads of the table that is shown."""
    size = ["size"] if any(entry.note for entry in comparison.entries) else []
    ratios = [f"step time / {short(comparison.reference)}", f"memory / {short(comparison.reference)}"]
    return ["method", *size, comparison.headline, "validation loss", "trainable", "stored", *ratios]


def cells(comparison: Comparison) -> list[list[str]]:
    """Return the rows of the table that is shown: the base first, then from the best score down."""
    sized = any(entry.note for entry in comparison.entries)
    return [_cells(comparison, entry, sized) for entry in (comparison.base, *comparison.measured)]


def _cells(comparison: Comparison, entry: ComparedEntry, sized: bool) -> list[str]:
    like = next((other for other in comparison.entries if other.label == comparison.reference), None)
    score = entry.scores.get(comparison.headline)
    return [
        entry.label,
        *([entry.note or NONE] if sized else []),
        spread(score, 4),
        spread(entry.validation, 3),
        NONE if entry.trainable is None else f"{entry.trainable:,}",
        NONE if entry.stored is None else f"{entry.stored:,}",
        ratio(entry.step_s, like.step_s if like else None),
        ratio(entry.memory, like.memory if like else None),
    ]


def short(label: str) -> str:
    """Return a label without its options."""
    return label.partition(" (")[0]


def names(entries: Sequence[ComparedEntry]) -> list[str]:
    """Return labels for a picture: without options where that still tells the entries apart."""
    brief = [short(entry.label) for entry in entries]
    return brief if len(set(brief)) == len(brief) else [entry.label for entry in entries]


def spread(value: Spread | None, digits: int) -> str:
    """Write a mean, and its spread over seeds where there is one."""
    if value is None:
        return NONE
    mean = f"{value.mean:.{digits}f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.{digits}f}"


def ratio(value: float | None, reference: float | None) -> str:
    """Write a ratio to the reference's figure."""
    return NONE if value is None or not reference else f"{value / reference:.2f}"


def document(comparison: Comparison, picture: bytes) -> Document:
    """Return the whole report as a page with the PNG `picture` in it."""
    page = Document(comparison.title)
    page.add(
        Facts(comparison.setup),
        Table(heads(comparison), cells(comparison)),
        Paragraph(legend(comparison), "A click on a head sorts."),
        Picture("comparison", "Loss curves, and scores against stored parameters", picture),
        Heading("All scores"),
        Table(*all_scores(comparison)),
    )
    failed = [f"{entry.label}: {entry.reason}" for entry in comparison.entries if entry.reason]
    if failed:
        page.add(Heading("Left out"), Points(failed))
    return page


def legend(comparison: Comparison) -> str:
    """Say how the table is to be read."""
    deviation = " ± is the standard deviation over seeds." if comparison.setup["seeds"] != "1" else ""
    return (
        "The base is the model before training. Stored are the numbers in the saved adapter. Step time is the median "
        "over optimizer steps and memory the peak of training, the model and the libraries included, both as ratios to "
        f"{comparison.reference}.{deviation}"
    )


def all_scores(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table with every score of the whole set; those of its parts are in the CSV file."""
    names = [name for name in _score_names(comparison) if "/" not in name]
    entries = (comparison.base, *comparison.measured)
    return ["method", *names], [[entry.label, *(spread(entry.scores.get(n), 4) for n in names)] for entry in entries]


def csv_text(comparison: Comparison) -> str:
    """Write every figure of every entry as CSV; a spread has its own column, what is not known is empty."""
    scores = _score_names(comparison)
    figures = ["trainable", "stored", "validation_loss", "validation_loss_deviation", "step_s", "peak_memory_bytes"]
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(["method", "note", "seeds", *figures, *(f"{n}{end}" for n in scores for end in ("", "_deviation"))])
    for entry in (comparison.base, *comparison.entries):
        seeds = next((value.count for value in entry.scores.values()), 0)
        values = [entry.trainable, entry.stored, *_pair(entry.validation), entry.step_s, entry.memory]
        values += [figure for name in scores for figure in _pair(entry.scores.get(name))]
        note = "; ".join(text for text in (entry.note, entry.reason) if text)
        writer.writerow([entry.label, note, seeds, *("" if value is None else f"{value:.10g}" for value in values)])
    return written.getvalue()


def _score_names(comparison: Comparison) -> list[str]:
    """List the scores that the base has or, where it is not scored, the best entry."""
    return list(comparison.base.scores) or list(comparison.measured[0].scores if comparison.measured else ())


def _pair(value: Spread | None) -> tuple[float | None, float | None]:
    return (None, None) if value is None else (value.mean, value.deviation)
