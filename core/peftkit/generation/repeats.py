"""Tokens that would make an n-gram come again."""

from __future__ import annotations

import torch
from torch import Tensor

from peftkit.generation.cache import ABSENT


def forbid_repeats(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """Return `scores` [rows, vocabulary] with minus infinity where a token would end an n-gram that the row holds.

    ids [rows, length] are the texts so far, each ending in the last column, `ABSENT` before their beginning; `size` is
    n. The rule is of Paulus et al. 2017, arXiv:1705.04304. Ids beyond the vocabulary, which soft prompts have, match
    like others and are never forbidden, since they cannot be chosen.
    """
    length = ids.shape[1]
    if length < size:
        return scores
    matches = ids[:, size - 1 :] != ABSENT
    for back in range(1, size):
        # The n-gram that ends in column c matches where each of its first n - 1 tokens equals the last ones of the row.
        last = ids[:, length - back : length - back + 1]
        matches &= (ids[:, size - 1 - back : length - back] == last) & (last != ABSENT)
    rows, places = matches.nonzero(as_tuple=True)
    tokens = ids[rows, places + size - 1]
    inside = tokens < scores.shape[1]
    scores = scores.clone()
    scores[rows[inside], tokens[inside]] = -torch.inf
    return scores
