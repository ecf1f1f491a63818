"""The next token of every row of a batch: the likeliest, or drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from peftkit.generation.settings import Settings
from peftkit.kernels.wide import wide

Choose = Callable[[Tensor, Sequence[int]], list[int]]


def chooser(settings: Settings) -> Choose:
    """Return the function from logits [rows, vocabulary] and each row's prompt number to each row's next token."""
    if not settings.do_sample:
        return lambda logits, prompts: logits.argmax(-1).tolist()
    generators: dict[int, random.Random] = {}

    def draw(logits: Tensor, prompts: Sequence[int]) -> list[int]:
        # A generator of its own for every prompt: what is drawn for one does not depend on what else is in the batch.
        for prompt in prompts:
            generators.setdefault(prompt, random.Random(f"{settings.seed}/{prompt}"))
        uniform = torch.tensor([generators[prompt].random() for prompt in prompts], device=logits.device)
        return invert(probabilities(logits, settings), uniform)

    return draw


def probabilities(logits: Tensor, settings: Settings) -> Tensor:
    """Return what to draw from, [rows, vocabulary]: tempered, the top_k likeliest, of those the ones that hold top_p.

    The nucleus is of Holtzman et al. 2020, arXiv:1904.09751; the likeliest token always stays.
    """
    scores = logits.float() / settings.temperature
    if 0 < settings.top_k < scores.shape[-1]:
        least = scores.topk(settings.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    weights = scores.softmax(-1)
    if settings.top_p < 1:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        outside = torch.zeros_like(weights, dtype=torch.bool).scatter_(-1, order, before >= settings.top_p)
        weights = weights.masked_fill(outside, 0.0)
    return weights


def invert(weights: Tensor, uniform: Tensor) -> list[int]:
    """Return each row's token at which the running sum of `weights` [rows, vocabulary] passes the share `uniform`."""
    reached = wide(weights).cumsum(-1)
    passed = reached > wide(uniform)[:, None] * reached[:, -1:]
    return passed.int().argmax(-1).tolist()
