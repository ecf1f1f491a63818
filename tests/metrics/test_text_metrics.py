"""The text metrics on texts small enough to score by hand."""

from __future__ import annotations

import math

import pytest

from peftkit.errors import PeftkitError
from peftkit.metrics import METRICS

ALL = ("bleu", "nist", "rouge_l", "cider", "coco_bleu", "ter", "chrf", "meteor", "gsm8k", "coqa")
LABELS = ("accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman")
"""Metrics of labels and numbers, which have tests of their own."""


def test_bleu_clips_counts_and_takes_the_closest_reference_length():
    # "the" at most twice (first reference), "cat" once: 3 of 4; bigrams: "the cat", 1 of 3; length 3: no penalty.
    scores = METRICS["bleu"].score(["the the the cat"], [["The cat, the", "the cat"]])
    assert scores["BLEU-1"] == pytest.approx(3 / 4)
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3))


def test_bleu_halves_again_for_each_order_without_a_match():
    # Words 2 of 4; bigrams, trigrams and fourgrams none of 3, 2 and 1: 1/(2 * 3), 1/(4 * 2), 1/(8 * 1).
    scores = METRICS["bleu"].score(["a x b y"], [["b q a r"]])
    assert scores["BLEU-4"] == pytest.approx((1 / 2 * 1 / 6 * 1 / 8 * 1 / 8) ** (1 / 4))


def test_bleu_punishes_short_predictions():
    # Everything matches; 2 words against 5 in the corpus: exp(1 - 5/2).
    scores = METRICS["bleu"].score(["a b", ""], [["a b c"], ["d e"]])
    assert scores["BLEU-1"] == pytest.approx(math.exp(1 - 5 / 2))
    assert scores["BLEU-2"] == pytest.approx(math.exp(1 - 5 / 2))


def test_an_order_without_any_n_gram_counts_as_matched():
    assert METRICS["bleu"].score(["a b"], [["a b"]])["BLEU-4"] == pytest.approx(1.0)


def test_nist_weighs_matches_by_their_information():
    # References "a b" and "a c", 4 words. Words: a log2(4/2) = 1, b and c log2(4/1) = 2; bigram "a b": log2(2/1) = 1.
    # Predictions "a b" and "c": words a, b and c matched: (1 + 2 + 2) / 3; bigrams: 1 / 1.
    # Length 3 of 4: exp(ln(0.5) / ln(1.5)^2 * ln(3/4)^2).
    score = METRICS["nist"].score(["a b", "c"], [["a b"], ["a c"]])["NIST"]
    penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(3 / 4) ** 2)
    assert score == pytest.approx((5 / 3 + 1) * penalty)


def test_nist_takes_the_history_zero_for_none_as_perl_does():
    # "0 x" is seen once in 4 words, "0" twice: log2(4/1), not log2(2/1). Words: 0 log2(4/2), x log2(4/1).
    score = METRICS["nist"].score(["0 x", "0 y"], [["0 x"], ["0 z"]])["NIST"]
    assert score == pytest.approx((1 + 2 + 1) / 4 + 2 / 2)


def test_rouge_l_takes_the_best_precision_and_the_best_recall_over_references():
    # Against "a b c d": common 2, P 2/3, R 2/4; against "a x": common 2, P 2/3, R 1.
    score = METRICS["rouge_l"].score(["a x b"], [["a b c d", "a x"]])["ROUGE-L"]
    precision, recall = 2 / 3, 1.0
    assert score == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision))


def test_rouge_l_knows_order_and_is_a_mean_over_inputs():
    # "c a b" and "a b c" have "a b" in common: P = R = F = 2/3; the second input has nothing in common.
    assert METRICS["rouge_l"].score(["c a b", "x"], [["a b c"], ["y"]])["ROUGE-L"] == pytest.approx(1 / 3)


def test_cider_of_a_perfect_and_a_wrong_answer():
    # Two inputs, nothing shared: every weight is its count times ln 2. The first text has all four orders, and its
    # cosine is 1 in each: 10 * 1; the second matches nothing.
    score = METRICS["cider"].score(["a b c d", "x"], [["a b c d"], ["e f g h"]])["CIDEr"]
    assert score == pytest.approx(10 / 2)


def test_cider_clips_and_punishes_another_length():
    # "p p" against "p q" with another input: weights in ln 2: word p 2 against 1, clipped: 1 * 1 / (2 * sqrt 2).
    # No bigram in common; equal lengths. Mean of 4 orders, times 10, mean over 2 inputs; the other matches nothing.
    score = METRICS["cider"].score(["p p", "x"], [["p q"], ["r s"]])["CIDEr"]
    assert score == pytest.approx(10 * (1 / (2 * math.sqrt(2))) / 4 / 2)
    # "p" against "p q r": cosine of words 1/sqrt 3, lengths 0 and 2 bigrams: exp(-4/72).
    score = METRICS["cider"].score(["p", "x"], [["p q r"], ["s t"]])["CIDEr"]
    assert score == pytest.approx(10 * math.exp(-4 / 72) / math.sqrt(3) / 4 / 2)


def test_cider_of_a_single_input_is_nothing():
    assert METRICS["cider"].score(["a b"], [["a b"]]) == {"CIDEr": 0.0}


def test_the_captioning_bleu_leaves_punctuation_out_and_does_not_halve():
    scores = METRICS["coco_bleu"].score(["It's good, really."], [["it's good"]])
    assert scores["coco_BLEU-1"] == pytest.approx(3 / 4)  # it 's good really
    assert scores["coco_BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
    assert METRICS["coco_bleu"].score(["x"], [["y"]])["coco_BLEU-1"] < 1e-9


@pytest.mark.parametrize("name", ALL)
def test_faulty_input_is_told(name):
    metric = METRICS[name]
    with pytest.raises(PeftkitError, match="2 predictions and references for 1 inputs"):
        metric.score(["a", "b"], [["#### 1"]])
    with pytest.raises(PeftkitError, match="nothing to score"):
        metric.score([], [])
    with pytest.raises(PeftkitError, match="references of input 1"):
        metric.score(["a"], [[]])
    with pytest.raises(PeftkitError, match="references of input 1"):
        metric.score(["a"], ["text in place of a list"])  # type: ignore[list-item]
    with pytest.raises(PeftkitError, match="prediction 1 is NoneType"):
        metric.score([None], [["#### 1"]])  # type: ignore[list-item]


@pytest.mark.parametrize("name", [name for name in METRICS.names() if name not in ("meteor", *LABELS)])
def test_a_metric_returns_the_keys_it_announces_and_bears_empty_predictions(name):
    scores = METRICS[name].score(["", "b 2"], [["true #### 1"], ["false #### 2", "true #### 3"]])
    assert tuple(scores) == METRICS[name].keys
    assert all(math.isfinite(value) and value >= 0 for value in scores.values())


def test_every_listed_metric_is_registered():
    assert {*ALL, *LABELS} <= set(METRICS.names())
