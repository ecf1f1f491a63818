"""TER and chrF equal sacrebleu, whatever the texts."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from peftkit.metrics import METRICS
from peftkit.metrics.edits import Distance

WORDS = st.sampled_from(["a", "b", "c", "the", "The", "fox,", "é", "7.50"])
TEXT = st.lists(WORDS, max_size=14).map(" ".join)
SETS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4)


def ter(predictions, references):
    return METRICS["ter"].score(predictions, references)["TER"]


def test_a_shift_is_one_edit_and_the_nearest_reference_counts():
    # "c d" moves to the front: 1 edit; the references have 4 and 2 words, 3 on average.
    assert ter(["a b c d"], [["c d a b", "x y"]]) == pytest.approx(100 / 3)
    # One word changed and one put in: 2 of 3; nothing to do for the other input: 2 of 3 + 1.
    assert ter(["x b", "Y"], [["a b c"], ["y"]]) == pytest.approx(100 * 2 / 4)


def test_texts_without_words():
    assert ter([""], [[""]]) == 0
    assert ter(["a b"], [[""]]) == 100
    assert ter(["", "a"], [["a b"], ["a", ""]]) == pytest.approx(100 * 2 / 2.5)


@given(SETS)
def test_both_equal_sacrebleu(texts):
    predictions, references = [text for text, _ in texts], [group for _, group in texts]
    streams = list(zip_longest(*references))
    assert ter(predictions, references) == pytest.approx(TER().corpus_score(predictions, streams).score, abs=1e-9)
    found = METRICS["chrf"].score(predictions, references)["chrF"]
    assert found == pytest.approx(CHRF().corpus_score(predictions, streams).score, abs=1e-9)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        (range(44), [*range(22, 44), *range(22)]),
        (range(12, 72), [*range(12), *range(40, 72), *range(20, 40)]),
        (range(5), range(100, 160)),
        ([0, 1] * 25, [1, 0, 0] * 15),
        ([*range(30), *range(15)], [*range(15), *range(60, 30, -1)]),
    ],
)
def test_ter_of_long_texts_keeps_to_the_band_and_the_limits_of_sacrebleu(prediction, reference):
    one, other = " ".join(map(str, prediction)), " ".join(map(str, reference))
    assert ter([one], [[other]]) == pytest.approx(TER().corpus_score([one], [[other]]).score, abs=1e-9)


@given(st.lists(WORDS, max_size=9), st.lists(WORDS, min_size=1, max_size=9), st.lists(WORDS, max_size=9))
def test_distances_with_a_common_beginning(words, reference, rest):
    distance = Distance(reference)
    whole, trace = distance.trace(words)
    assert whole == sum(edit != " " for edit in trace)
    same = len(words) // 2
    other = words[:same] + rest
    expected, _ = Distance(reference).trace(other)
    assert distance.below(expected + 1, other, words, same) == expected
    assert distance.below(expected, other, words, same) is None
