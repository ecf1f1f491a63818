"""Critics of a prompt: lower bounds of what it tells of a model's head and of its states, as terms of the loss."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.context import PROMPT, Context


class Judges(nn.Module):
    """The critics C [rows' size, width] of the head and of the states, each where its term counts."""

    def __init__(self, size: int, layout: Layout, *, head: bool, states: bool):
        super().__init__()
        self.__dict__["embedding"] = layout.embedding()

        def critic(wanted: bool) -> nn.Parameter | None:
            return nn.Parameter(torch.randn(size, layout.width) / math.sqrt(layout.width)) if wanted else None

        self.head, self.states = critic(head), critic(states)

    def clear(self) -> None:
        """Drop the critics, which training alone needs."""
        self.head = self.states = None


class Critic(Adapter):
    """Looks at the last layer's states of texts, and at the prompt on the tape."""

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "tokens"

    def __init__(self, site: Site, beta: float, gamma: float, negatives: int):
        super().__init__(site)
        self.beta, self.gamma, self.negatives = beta, gamma, negatives

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        if self.shared.head is not None or self.shared.states is not None:
            self.context.tape[self] = y
        return y

    def aux_loss(self, context: Context) -> Tensor | None:
        y = context.tape.pop(self, None)
        prompts = [rows.float().mean(-2) for rows in _prompts(context, self.adaptation)]
        if y is None or not prompts:
            return None
        tokens = self.tokens
        p = torch.stack([prompt for prompt in prompts if prompt.shape == prompts[0].shape]).mean(0)
        p = p if p.ndim == 2 else p[None]
        text = (tokens.ids < self.shared.embedding.inputs) & (tokens.positions >= 0)
        terms = []
        if self.shared.head is not None:
            terms.append(self.beta * self._head(p, tokens.ids, text))
        if self.shared.states is not None:
            terms.append(self.gamma * self._states(p, y.float(), text))
        return torch.stack(terms).sum()

    def _states(self, p: Tensor, y: Tensor, text: Tensor) -> Tensor:
        """Return the term of states y [B, T, width] for prompts p [B or 1, size]."""
        drawn = torch.randn(self.negatives, p.shape[-1], device=p.device) * p.std() + p.mean()
        right = torch.einsum("bs,sd,btd->bt", p.expand(len(y), -1), self.shared.states, y)
        wrong = torch.einsum("ks,sd,btd->btk", drawn, self.shared.states, y)
        return bound(right[text], wrong[text])

    def _head(self, p: Tensor, ids: Tensor, text: Tensor) -> Tensor:
        """Return the term of the head's rows of tokens [B, T]."""
        site = self.shared.embedding
        drawn = torch.randint(site.inputs, (self.negatives,), device=ids.device)
        with torch.no_grad(), self.context.only(None):
            rows, others = (site.module(each).float() for each in (ids.masked_fill(~text, 0), drawn))
        looked = p @ self.shared.head
        right = torch.einsum("bd,btd->bt", looked.expand(len(ids), -1), rows)
        wrong = (looked @ others.T)[:, None].expand(*ids.shape, -1)
        return bound(right[text], wrong[text])


def bound(right: Tensor, wrong: Tensor) -> Tensor:
    """Return InfoNCE less log(1 + K) for scores [N] of what is right and [N, K] of what is not: minus the bound."""
    scores = torch.cat([right[:, None], wrong], 1)
    return -F.log_softmax(scores, 1)[:, 0].mean() - math.log(scores.shape[1])


def _prompts(context: Context, adaptation: str) -> list[Tensor]:
    """Return the rows of the prompts of an adaptation that are on the tape."""
    told = [(key, rows) for key, rows in context.tape.items() if isinstance(key, tuple) and key[0] == PROMPT]
    return [rows for (_, adapter), rows in told if adapter.adaptation == adaptation]
