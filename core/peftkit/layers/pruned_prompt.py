"""A soft prompt of which tokens, and then pieces of tokens, are cut while it is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peftkit.layout import Site
from peftkit.ports.embedding import SoftPrompt

STAGES = ("train", "score tokens", "score pieces", "retrain")


class PrunedPrompt(SoftPrompt):
    """In training P [length, width], masks and scores; then the pieces V [left, width / pieces] and their places."""

    mask: Tensor
    """[length, pieces]: what is left."""
    alive: Tensor
    """[length]: the tokens that stand in texts."""
    ended: Tensor
    """[length, width]: P at the end of the first stage."""
    scores: Tensor
    """[length, pieces]: those of tokens stand in the first column."""
    stage: Tensor
    undecayed: tuple[str, ...] = ("P", "V")

    def __init__(self, site: Site, length: int, pieces: int, left: int | None, start: Tensor | None):
        """Begin with the rows `start`, or, where a prompt was cut before, with `left` pieces."""
        super().__init__(site, length)
        self.pieces = pieces
        mask = torch.ones(length, pieces, dtype=torch.uint8)
        cut = left is not None
        if left is not None:
            mask = (torch.arange(mask.numel()) < left).to(torch.uint8).view(mask.shape)
        self.register_buffer("mask", mask)
        self.register_buffer("alive", torch.ones(length, dtype=torch.uint8), persistent=not cut)
        self.P: nn.Parameter | None = None if start is None else nn.Parameter(start)
        self.V: nn.Parameter | None = None
        if left is not None:
            self.V = nn.Parameter(torch.randn(left, site.outputs // pieces))
        else:
            self.register_buffer("ended", torch.zeros(length, site.outputs))
            self.register_buffer("scores", torch.zeros(length, pieces))
            self.register_buffer("stage", torch.zeros((), dtype=torch.long))

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self.first + index for index in self.alive.nonzero().flatten().tolist())

    @property
    def drawn(self) -> Tensor | None:
        return self.P

    def rows(self) -> Tensor:
        if self.P is not None:
            return (self.P.unflatten(1, (self.pieces, -1)) * self.mask.unsqueeze(-1)).flatten(1)
        assert self.V is not None
        left = self.V.new_zeros(*self.mask.shape, self.V.shape[1])
        left = left.masked_scatter(self.mask.bool().unsqueeze(-1), self.V).flatten(1)
        # In the run that cut them, rows keep the ids that they had before.
        whole = left.new_zeros(self.length, left.shape[1])
        return whole.index_copy(0, self.alive.nonzero().flatten(), left)

    def told(self) -> dict[str, Any]:
        """Return the stage and what is left, for the log."""
        left = {"prompt_tokens": int(self.alive.sum()), "prompt_pieces": int(self.mask.sum())}
        return {"stage": STAGES[int(self.stage)], **left}

    def score(self, stage: int) -> None:
        """Add |dL/dg| of tokens or pieces to the scores in the stage that takes them."""
        assert self.P is not None
        if stage not in (1, 2) or self.P.grad is None:
            return
        pieces = (self.P.detach() * self.P.grad).unflatten(1, (self.pieces, -1)).sum(-1)
        if stage == 1:
            self.scores[:, 0] += pieces.sum(1).abs()
        else:
            self.scores += pieces.abs()

    def advance(self, kept: tuple[int, int], step: int, ends: tuple[int, int, int]) -> None:
        """Keep what the first stage ended with, hold the prompt there while it is scored, and cut.

        `kept` are the tokens and the pieces that are left, `ends` the steps with which the first three stages end.
        """
        assert self.P is not None
        done = step + 1
        with torch.no_grad():
            if done == ends[0]:
                self.ended.copy_(self.P)
            elif ends[0] < done <= ends[2]:
                self.P.copy_(self.ended)
        if done == ends[1]:
            self.cut_tokens(kept[0], self.scores[:, 0])
        elif done == ends[2]:
            self.cut_pieces(kept[1], self.scores)
        if done in ends[1:]:
            self.scores.zero_()
        self.stage.fill_(sum(done >= end for end in ends))

    def cut_tokens(self, count: int, scores: Tensor) -> None:
        """Leave the `count` tokens of the highest scores [length]."""
        self.alive.zero_()
        self.alive[scores.topk(count).indices] = 1
        self.mask *= self.alive[:, None]

    def cut_pieces(self, count: int, scores: Tensor) -> None:
        """Leave the `count` pieces of the highest scores [length, pieces] among those of tokens that are left."""
        left = scores.masked_fill(self.mask == 0, -1).flatten().topk(count).indices
        self.mask.view(-1).zero_()
        self.mask.view(-1)[left] = 1

    def shrink(self, kept: tuple[int, int]) -> None:
        """Put what is left in the place of P and its masks."""
        assert self.P is not None
        sizes = self.P.detach().unflatten(1, (self.pieces, -1)).norm(dim=-1)
        if int(self.stage) < 2:
            self.cut_tokens(kept[0], sizes.norm(dim=1))
        if int(self.stage) < 3:
            self.cut_pieces(kept[1], sizes)
        alive = self.alive.bool()
        pieces = self.P.detach().unflatten(1, (self.pieces, -1))
        self.V = nn.Parameter(pieces[self.mask.bool()].clone())
        self.mask = self.mask[alive].clone()
        self.P = None
        for name in ("ended", "scores", "stage"):
            delattr(self, name)
        del self.alive
        self.register_buffer("alive", alive.to(torch.uint8), persistent=False)
