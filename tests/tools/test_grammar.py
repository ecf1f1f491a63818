"""The phrase grammar: slots, alternatives, a/an, plurals."""

from __future__ import annotations

from random import Random

import pytest

from synthetic.grammar import counted, enumerate_words, expand, possessive


def test_alternatives_nest_and_every_one_is_reached() -> None:
    rng = Random(0)
    seen = {expand("[a|b[1|2]|] {x}", rng, x="z") for _ in range(200)}
    assert seen == {"a z", "b1 z", "b2 z", " z"}


@pytest.mark.parametrize(
    ("word", "article"),
    [
        *[(word, "a") for word in ("pub", "university", "5 out of 5", "one-room inn", "Øre")],
        *[(word, "an") for word in ("inn", "Italian pub", "uninteresting book", "hour", "8 out of 5", "élan")],
    ],
)
def test_article_agrees_with_the_next_word(word: str, article: str) -> None:
    assert expand("it is a(n) {w}", Random(0), w=word) == f"it is {article} {word}"


def test_a_template_with_unbalanced_brackets_is_refused() -> None:
    with pytest.raises(ValueError, match="unbalanced"):
        expand("[a|b", Random(0))


def test_counts_lists_and_possessives() -> None:
    assert [counted(1, "box"), counted(3, "box"), counted(2, "cherry"), counted(4, "toy"), counted(5, "loaf")] == [
        "1 box", "3 boxes", "2 cherries", "4 toys", "5 loaves",
    ]  # fmt: skip
    assert enumerate_words(["a"]) == "a"
    assert enumerate_words(["a", "b", "c"]) == "a, b and c"
    assert (possessive("Mara"), possessive("Hughes")) == ("Mara's", "Hughes'")
