"""One continuation a prompt: the likeliest token each time, or one that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peftkit.generation.cache import ABSENT
from peftkit.generation.choosing import chooser
from peftkit.generation.settings import Settings
from peftkit.generation.stopping import Stopping
from peftkit.keys import without


@dataclass
class Text:
    """A prompt whose answer is being made."""

    number: int
    prompt: list[int]
    made: int = 0
    """Tokens made so far."""
    answer: list[int] = field(default_factory=list)
    """The answer, once it is there; of a single continuation also on the way."""
    state: Any = None
    """What a search over several continuations keeps of this text."""


class Choice(NamedTuple):
    """What a search chose: each row's next token, the row that it continues (None: its own), and whose answer ended."""

    tokens: Tensor
    sources: Tensor | None
    done: list[bool]


class Single:
    """Greedy decoding and sampling; a text has `copies` rows of the batch."""

    copies = 1

    def __init__(self, settings: Settings, stopping: Stopping):
        self.settings, self.stopping, self.choose = settings, stopping, chooser(settings)

    def advance(self, texts: Sequence[Text], logits: Tensor, ids: Tensor) -> Choice:
        """Take one token more for each text by the logits [rows, vocabulary] after its rows `ids` [rows, length]."""
        allowed = without_repeats(logits, ids, texts, self.settings, self.copies)
        chosen = self.choose(allowed, [text.number for text in texts])
        done = []
        for text, token in zip(texts, chosen, strict=True):
            text.made += 1
            text.answer.append(token)
            done.append(text.made == self.settings.max_new_tokens or self.stopping.ended(text.answer))
        return Choice(torch.tensor(chosen, device=ids.device), None, done)


def without_repeats(scores: Tensor, ids: Tensor, texts: Sequence[Text], settings: Settings, copies: int) -> Tensor:
    """Return `scores` without the tokens that would repeat an n-gram, where the settings ask for that."""
    if not settings.no_repeat_ngram_size:
        return scores
    if not settings.no_repeat_ngram_prompt:
        made = torch.tensor([text.made for text in texts], device=ids.device).repeat_interleave(copies)
        column = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.masked_fill(column < ids.shape[1] - made[:, None], ABSENT)
    return forbid_repeats(scores, ids, settings.no_repeat_ngram_size)


def forbid_repeats(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """Return `scores` [rows, vocabulary] with minus infinity where a token would end an n-gram that the row holds.

    ids [rows, length] are the texts so far, each ending in the last column, `ABSENT` before their beginning; `size` is
    n. The rule is of Paulus et al. 2017, arXiv:1705.04304. Ids beyond the vocabulary, which soft prompts have, match
    like others and are never forbidden, since they cannot be chosen.
    """
    ids, length = without(ids), ids.shape[1]
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
