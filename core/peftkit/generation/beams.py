"""Beam search: several continuations of each prompt side by side, of which the likeliest by length is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peftkit.generation.settings import Settings
from peftkit.generation.single import Choice, Text, without_repeats
from peftkit.generation.stopping import Stopping

NEVER = -1.0e9
"""The score of what cannot be chosen."""


@dataclass
class Beam:
    """What the search keeps of one text."""

    scores: Tensor
    """Log-probabilities [beams] of the continuations that go on, the best one first."""
    answers: list[tuple[float, list[int]]] = field(default_factory=list)
    """At most as many answers as there are beams, with their scores, the best one first."""

    def add(self, score: float, ids: list[int], beams: int) -> None:
        """Take an answer among the best ones."""
        self.answers = sorted([*self.answers, (score, ids)], key=lambda answer: -answer[0])[:beams]


class Beams:
    """Beam search that finds what transformers' finds (its rules for ending are those of version 5).

    At each step the (1 + ends) x beams likeliest continuations of all beams of a text are looked at. Of the first
    `beams`, those that end become answers with the score log p / length^penalty (Wu et al. 2016, arXiv:1609.08144,
    without its constants); the first `beams` that do not end go on. The search is over as `early_stopping` says.
    """

    def __init__(self, settings: Settings, stopping: Stopping):
        self.settings, self.stopping = settings, stopping
        self.copies = settings.num_beams
        self.candidates = max(2, 1 + len(stopping.ends)) * settings.num_beams

    def advance(self, texts: Sequence[Text], logits: Tensor, ids: Tensor) -> Choice:
        """Take one token more for each beam of each text."""
        count, beams, vocabulary = len(texts), self.copies, logits.shape[-1]
        scores = without_repeats(logits.float().log_softmax(-1), ids, texts, self.settings, beams)
        scores = scores.view(count, beams, vocabulary) + self._scores(texts, logits.device)[:, :, None]
        top, index = scores.view(count, -1).topk(min(self.candidates, beams * vocabulary))
        sources, tokens = index // vocabulary, index % vocabulary
        ends = self._endings(texts, top, sources, tokens, ids)
        if ends is None:
            going, closed = top[:, :beams], [False] * count
            sources, tokens = sources[:, :beams], tokens[:, :beams]
        else:
            going, order = (top + NEVER * ends).topk(beams)
            sources, tokens, closed = sources.gather(1, order), tokens.gather(1, order), ends.all(1).tolist()
        done = []
        for text, own, best, over in zip(texts, going, going[:, 0].tolist(), closed, strict=True):
            text.made, text.state.scores = text.made + 1, own
            done.append(over or self._is_over(text, best))
            if done[-1]:
                text.answer = text.state.answers[0][1]
        first = torch.arange(count, device=ids.device)[:, None] * beams
        return Choice(tokens.flatten(), (sources + first).flatten(), done)

    def _scores(self, texts: Sequence[Text], device: torch.device) -> Tensor:
        """Return the scores [texts, beams]; those of a new text leave the first beam alone, since all are the same."""
        for text in texts:
            if text.state is None:
                text.state = Beam(torch.tensor([0.0] + [NEVER] * (self.copies - 1), device=device))
        return torch.stack([text.state.scores for text in texts])

    def _endings(
        self, texts: Sequence[Text], top: Tensor, sources: Tensor, tokens: Tensor, ids: Tensor
    ) -> Tensor | None:
        """Say which candidates [texts, candidates] end, None for none, and take the best of them as answers."""
        ended = None
        for number, (text, row) in enumerate(zip(texts, tokens.tolist(), strict=True)):
            last = text.made + 1 == self.settings.max_new_tokens
            if not last and not any(map(self.stopping.may_end, row)):
                continue
            scale = (text.made + 1) ** self.settings.length_penalty
            for rank, token in enumerate(row):
                if not last and not self.stopping.may_end(token):
                    continue
                beam = number * self.copies + int(sources[number, rank])
                made = [*ids[beam, ids.shape[1] - text.made :].tolist(), token] if text.made else [token]
                if not last and not self.stopping.ended(made):
                    continue
                if ended is None:
                    ended = torch.zeros_like(top, dtype=torch.bool)
                ended[number, rank] = True
                if rank < self.copies:
                    text.state.add(float(top[number, rank]) / scale, made, self.copies)
        return ended

    def _is_over(self, text: Text, best: float) -> bool:
        """Say whether no continuation could become a better answer than those that are there, as far as is looked."""
        answers, settings = text.state.answers, self.settings
        if len(answers) < self.copies:
            return False
        if settings.early_stopping is True:
            return True
        farthest = settings.early_stopping == "never" and settings.length_penalty > 0
        length = settings.max_new_tokens if farthest else text.made
        return best / length**settings.length_penalty <= answers[-1][0]
