"""Tables and pages of a comparison made by hand: spreads, ratios, order of columns, and escaping."""

from __future__ import annotations

import csv
import io

from peftkit.report import picture, tables
from peftkit.report.results import ComparedEntry, Comparison, Spread


def row(label: str, score: float, **rest) -> ComparedEntry:
    known = {"trainable": 1000, "stored": 1200, "step_s": 0.2, "memory": 3 * 10**8, "validation": Spread(1.5, 0.1, 2)}
    scores = {"BLEU": Spread(score, 0.02, 2), "other": Spread(1.0, 0.0, 2)}
    return ComparedEntry(label, scores=scores, steps=(1, 2, 3), losses=(4.0, 3.0, 2.0), **{**known, **rest})


def comparison() -> Comparison:
    rows = (row("b <i>", 0.75, step_s=0.3), row("a|c", 0.5), ComparedEntry("none", reason="it has <no> bias"))
    base = ComparedEntry("base", scores={"BLEU": Spread(0.01, None, 1), "other": Spread(0.0, None, 1)})
    return Comparison("3 methods on a set", {"seeds": "2", "model": "m & n"}, "BLEU", base, rows, "a|c")


def test_spreads_and_ratios_are_written():
    assert tables.spread(Spread(0.5, None, 1), 3) == "0.500"
    assert tables.spread(Spread(0.5, 0.0625, 2), 3) == "0.500 ± 0.062"
    assert tables.spread(None, 3) == "–"
    heads, cells = tables.heads(comparison()), tables.cells(comparison())
    ratio = heads.index("step time / a|c")
    assert [line[ratio] for line in cells] == ["–", "1.50", "1.00"]
    assert all(len(line) == len(heads) for line in cells)


def test_sizes_have_a_column_where_a_budget_set_them():
    assert "size" not in tables.heads(comparison())
    sized = Comparison("t", {"seeds": "1"}, "BLEU", comparison().base, (row("x", 1.0, note="rank 3"),), "x")
    assert tables.heads(sized)[1] == "size"
    assert tables.cells(sized)[1][1] == "rank 3"


def test_markdown_keeps_its_columns_and_tells_reasons():
    text = tables.document(comparison(), b"picture").markdown()
    assert "a\\|c" in text
    assert "- none: it has &lt;no> bias" in text
    assert "standard deviation over seeds" in text


def test_csv_holds_every_figure():
    first, second, third, fourth = csv.DictReader(io.StringIO(tables.csv_text(comparison())))
    assert first["method"] == "base"
    assert second["BLEU"] == "0.75"
    assert second["BLEU_deviation"] == "0.02"
    assert third["peak_memory_bytes"] == "300000000"
    assert fourth["note"] == "it has <no> bias"
    assert fourth["BLEU"] == ""


def test_the_page_is_escaped_and_stands_alone():
    html = tables.document(comparison(), b"picture").html()
    assert "b &lt;i&gt;" in html
    assert "it has &lt;no&gt; bias" in html
    assert "m &amp; n" in html
    assert "data:image/png;base64,cGljdHVyZQ==" in html
    assert "http" not in html


def test_the_picture_is_drawn_for_forty_rows_and_for_none():
    rows = tuple(row(f"method-{number}", 0.01 * number, stored=10 + number) for number in range(40))
    many = Comparison("t", {"seeds": "2"}, "BLEU", comparison().base, rows, "method-1")
    assert picture.draw(many).startswith(b"\x89PNG")
    unmeasured = (ComparedEntry("x", reason="not run yet"),)
    none = Comparison("t", {"seeds": "1"}, "score", ComparedEntry("base"), unmeasured, "")
    assert picture.draw(none).startswith(b"\x89PNG")
