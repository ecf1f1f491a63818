"""Both tokenizations on texts of our own; the expected tokens follow the published conventions."""

from __future__ import annotations

import pytest

from peftkit.metrics import mteval, ptb


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ('It\'s £3.50, ÉTÉ & "co" &amp; <skipped>1,000.', 'it\'s £3.50 , ÉtÉ & " co " & 1,000 .'),
        ("a 4-star pub, mid-range.Next", "a 4 - star pub , mid-range . next"),
        ("no\u00a0break\tand\u2009thin", "no break and thin"),
        ("", ""),
    ],
)
def test_mteval(text, tokens):
    assert " ".join(mteval.tokenize(text)) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("They're here, aren't they?", "they 're here are n't they"),
        ("Cannot say; WON'T say.", "can not say wo n't say"),
        ("The “Old Mill” (open)…", "the old mill -lrb- open -rrb-"),
        ("Mr. P. Gray of the U.K. paid £5, $6 and €7.", "mr. p. gray of the u.k. paid # 5 $ 6 and $ 7"),
        ("a well-known and/or 4-star place at 5:30pm", "a well-known and/or 4-star place at 5:30 pm"),
        ("see http://a.org/b?c=d or x@y.org", "see http://a.org/b?c=d or x@y.org"),
        ("R&D 😀 20°C, 1/2 ½ 3²", "r&d 20 ° c 1/2 1/2 3 ²"),
        ("in the centre., near it", "in the centre. near it"),
        ("O'Hara's o'clock 'n' the '80s", "o'hara 's o'clock 'n' the '80s"),
        (" . ! -- ", ""),
    ],
)
def test_penn_treebank(text, tokens):
    assert " ".join(ptb.tokenize(text)) == tokens


def test_a_line_that_ends_in_a_single_letter_looks_at_the_next_line():
    assert ptb.tokenize_lines(["plan B.", "The end"])[0] == ("plan", "b")
    assert ptb.tokenize_lines(["plan B.", "Gray skies"])[0] == ("plan", "b.")
    assert ptb.tokenize_groups([["plan B."], ["The end", "x"]]) == [[("plan", "b")], [("the", "end"), ("x",)]]
