"""A comparison as one HTML page that needs no other file: tables that sort at a click, and the picture."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from peftkit.report.results import Comparison
from peftkit.report.tables import all_scores, cells, heads, legend

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { cursor: pointer; border-bottom: 2px solid #1f2933; }
th:hover { background: #f1f5f9; }
dt { float: left; clear: left; width: 9rem; color: #52606d; }
img { max-width: 100%; }
"""
SORT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const value = row => row.cells[column].textContent.replaceAll(",", "");
  const sign = down === "1" ? -1 : 1;
  const order = (a, b) => {
    const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
    return sign * (isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y);
  };
  body.append(...[...body.rows].sort(order));
};
"""


def html(comparison: Comparison, picture: bytes) -> str:
    """Write the page with the PNG `picture` in it."""
    image = base64.b64encode(picture).decode()
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in comparison.setup.items())
    failed = [entry for entry in comparison.entries if entry.reason]
    left_out = "".join(f"<li>{escape(entry.label)}: {escape(str(entry.reason))}</li>" for entry in failed)
    parts = [
        f"<h1>{escape(comparison.title)}</h1><dl>{facts}</dl>",
        table(heads(comparison), cells(comparison)),
        f"<p>{escape(legend(comparison))} A click on a head sorts.</p>",
        f'<img alt="Loss curves, and scores against stored parameters" src="data:image/png;base64,{image}">',
        "<h2>All scores</h2>" + table(*all_scores(comparison)),
        f"<h2>Left out</h2><ul>{left_out}</ul>" if failed else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(comparison.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SORT}</script></body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table; a click on a head sorts it."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
