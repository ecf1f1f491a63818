"""ROUGE-L as the official E2E script prints it: the longest common subsequence, on Penn Treebank tokens.

Lin 2004 (ACL W04-1013), in the form of the COCO captioning tools: the best precision and recall over the references.
"""

from __future__ import annotations

from collections.abc import Sequence

from peftkit.metrics import metric
from peftkit.metrics.ptb import tokenize_groups, tokenize_lines

BETA = 1.2


@metric("rouge_l", "ROUGE-L")
def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean over inputs of F = (1 + b^2) P R / (R + b^2 P), b = 1.2, as a fraction."""
    total = 0.0
    for tokens, group in zip(tokenize_lines(predictions), tokenize_groups(references), strict=True):
        # A text without tokens is one empty token, which equals another such text.
        hypothesis = tokens or ("",)
        precision = recall = 0.0
        for reference in (tokens or ("",) for tokens in group):
            common = common_subsequence(hypothesis, reference)
            precision, recall = max(precision, common / len(hypothesis)), max(recall, common / len(reference))
        if precision and recall:
            total += (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return {"ROUGE-L": total / len(predictions)}


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a whole row of the table in one integer.

    Bit-parallel recurrence of Hyyro 2004 (AWOCA): a bit is cleared where the length grows.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(first):
        positions[token] = positions.get(token, 0) | 1 << index
    row = full = (1 << len(first)) - 1
    for token in second:
        match = row & positions.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()
