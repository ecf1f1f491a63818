"""What comes from data and models steers neither a terminal nor a page."""

import logging

import pytest

from peftkit.errors import PeftkitError
from peftkit.report.document import Document, Facts, Heading, Paragraph, Points, Table
from peftkit.visible import visible
from peftkit_cli.main import guarded
from peftkit_cli.terminal import say, table, tell_warnings

HOSTILE = "\x1b]0;owned\x07 \x9b2J \u202e <script>alert(1)</script> ![x](https://example.org/p.png) `rm`\r"


def test_steering_characters_are_written_as_escapes():
    assert visible("a\tb\nc é 👩‍👩‍👧") == "a\tb\nc é 👩‍👩‍👧"
    assert visible("\x1b[31m\x9b\u202e\ud800") == "\\x1b[31m\\x9b\\u202e\\ud800"


def test_a_page_shows_hostile_texts_and_runs_and_loads_nothing_of_them():
    document = Document(HOSTILE)
    document.add(Heading(HOSTILE), Paragraph(HOSTILE), Facts({HOSTILE: HOSTILE}), Points([HOSTILE]))
    document.add(Table(["a", HOSTILE], [[HOSTILE, "1"]], prose=True))
    for page in (document.markdown(), document.html()):
        assert not any(sign in page for sign in ("\x1b", "\x07", "\x9b", "\u202e", "<script>alert"))
        assert "\\x1b]0;owned\\x07" in page.replace("\\\\", "\\")
    assert "![x](" not in document.markdown()
    assert "<img" not in document.html()


def fail():
    raise PeftkitError(HOSTILE)


@pytest.mark.parametrize(
    "tell",
    [
        lambda: say(HOSTILE),
        lambda: table(("a",), [(HOSTILE,)], HOSTILE),
        lambda: guarded(fail),
        lambda: (tell_warnings(), logging.getLogger("peftkit").warning(HOSTILE)),
    ],
    ids=["line", "table", "error", "note"],
)
def test_a_terminal_sees_escapes(tell, capsys):
    tell()
    told = "".join(capsys.readouterr())
    assert "\\x1b]0;owned" in told
    assert not any(sign in told for sign in ("\x1b", "\x07", "\x9b", "\u202e"))
