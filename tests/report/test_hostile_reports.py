"""Pages about a run whose answers are hostile: nothing of them runs, loads from a network or steers a terminal."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import TEXTS, write_run

from peftkit.report import bootstrap, report

ANSWERS = [
    "\x1b]0;owned\x07\x9b2J<script>alert(1)</script>",
    "![x](https://example.org/p.png) <img src=https://example.org/q.png onerror=alert(1)>",
    "[click](javascript:alert(1)) \u202e`rm -rf`\r",
    "<style>@import url(https://example.org/s.css)</style><iframe src='//example.org'></iframe> | a | b |",
]


class Attributes(HTMLParser):
    """Gathers the values of all attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take those of one tag."""
        self.found += [value or "" for _, value in attrs]


def test_hostile_answers_stand_on_the_pages_as_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 20)
    runs = [write_run(tmp_path / name, answers) for name, answers in (("good", list(TEXTS)), ("bad", ANSWERS))]
    report(runs, tmp_path / "out")
    markdown, html = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("md", "html"))
    assert "owned" in markdown
    assert "owned" in html
    for page in (markdown, html):
        assert not any(sign in page for sign in ("\x1b", "\x07", "\x9b", "\u202e", "\r"))
        assert not re.search(r"<(script>alert|iframe|style>@import|img src=.?https?:)", page)
    assert not re.search(r"(?<!\\)\[[^\]]*\]\((https?|javascript):", markdown)
    told = Attributes()
    told.feed(html)
    assert told.found
    assert not [value for value in told.found if re.match(r"(https?:)?//|javascript:|alert", value)]
