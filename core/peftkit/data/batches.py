"""Micro-batches of examples of like length, in an order that follows from seed and epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from peftkit.data.encode import IGNORED, Encoded
from peftkit.data.rows import lengths_of
from peftkit.errors import PeftkitError
from peftkit.kernels.tree import SHARED

WINDOW = 16
"""Micro-batches' worth of shuffled examples that are sorted by length together: little padding, yet random company."""
KEPT = 4
"""Plans of epochs that are held, since a run looks at the first ones several times before it begins."""


@dataclass(frozen=True)
class Batch:
    """A padded micro-batch; padding is on the right and carries no loss."""

    input_ids: Tensor
    """[B, T] long."""
    attention_mask: Tensor
    """[B, T] long, 0 on padding."""
    labels: Tensor
    """[B, T] long, -100 where there is no loss; not shifted."""
    trained: int
    """Labels that a next-token loss uses: those of `labels[:, 1:]` that are not -100."""
    tokens: int
    """Tokens that are not padding."""
    examples: int
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors [B, ...] that an objective reads beside the rows."""
    terms: Sequence[int] | None = None
    """Terms of the loss that each row has, where they are not its trained labels."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on `device`."""
        tensors = (self.input_ids, self.attention_mask, self.labels)
        ids, mask, labels = (tensor.to(device, non_blocking=True) for tensor in tensors)
        extras = {name: tensor.to(device, non_blocking=True) for name, tensor in self.extras.items()}
        return replace(self, input_ids=ids, attention_mask=mask, labels=labels, extras=extras)


def without(batch: Batch, ids: Sequence[int]) -> Batch:
    """Return the batch without tokens of these ids, of which each row has as many as every other."""
    if not ids:
        return batch
    kept = ~torch.isin(batch.input_ids, torch.tensor(ids))
    rows = len(batch.input_ids)
    tensors = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "labels")}
    fewer = {name: tensor[kept].view(rows, -1) for name, tensor in tensors.items()}
    return replace(batch, **fewer, tokens=int(fewer["attention_mask"].sum()))


class EpochPlan(Sequence[list[int]]):
    """The micro-batches of an epoch, each a list of positions of rows."""

    def __init__(self, order: np.ndarray, bounds: np.ndarray):
        self.order, self.bounds = order, bounds
        """The rows in order, and where each micro-batch begins among them, with the end of the last one behind."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...
    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return self.order[self.bounds[at] : self.bounds[at + 1]].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def moved(self, to: np.ndarray) -> EpochPlan:
        """Return the same micro-batches in another order, `to` [micro-batches]."""
        sizes = np.diff(self.bounds)[to]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        return EpochPlan(
            self.order[np.repeat(self.bounds[to] - bounds[:-1], sizes) + np.arange(len(self.order))], bounds
        )


class Batches:
    """Cuts encoded examples into micro-batches by padded tokens (`batch_tokens`) or by number (`batch_examples`).

    With `group_prompts` the examples of one prompt follow each other, so that a micro-batch computes it once; only the
    border between two micro-batches parts them.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        batch_tokens: int | None = None,
        batch_examples: int | None = None,
        seed: int = 0,
        group_prompts: bool = False,
        collate: Callable[[Sequence[Encoded], int], Batch] | None = None,
    ):
        if (batch_tokens is None) == (batch_examples is None):
            raise PeftkitError("give exactly one of batch_tokens and batch_examples.")
        limit = batch_examples if batch_tokens is None else batch_tokens
        if limit is None or limit < 1:
            raise PeftkitError(f"batch_tokens and batch_examples are at least 1, found {limit}.")
        if not len(encoded):
            raise PeftkitError("the data set is empty: no example is left to make a batch of.")
        self.encoded = encoded
        self.batch_tokens = batch_tokens
        self.batch_examples = batch_examples
        self.seed, self.group_prompts = seed, group_prompts
        self.together = collate or _collate
        self.lengths = lengths_of(encoded)
        """Tokens of each row, [N] int64."""
        self.groups = by_prompt(encoded) if group_prompts else None
        """Positions of the examples that follow each other, where they are grouped."""
        self._plans: dict[int, EpochPlan] = {}

    def __len__(self) -> int:
        return len(self.encoded)

    def notices(self) -> list[str]:
        """Say in a sentence where nothing is grouped although it is asked for."""
        if self.groups is None or len(self.groups) < len(self):
            return []
        return [
            "train.group_prompts changes nothing here: no prompt has several examples (prompts below "
            f"{SHARED} tokens, and one prompt for all, do not count)."
        ]

    def plan(self, epoch: int) -> EpochPlan:
        """Return the micro-batches of an epoch as lists of example positions, each position exactly once.

        A pure function of the examples' lengths and groups, the limits, seed and epoch. An example longer than
        `batch_tokens` is alone.
        """
        if epoch not in self._plans:
            while len(self._plans) >= KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[epoch] = self._plan(epoch)
        return self._plans[epoch]

    def _plan(self, epoch: int) -> EpochPlan:
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
        groups, lengths = self.groups, self.lengths
        count = len(self) if groups is None else len(groups)
        order = torch.randperm(count, generator=generator).numpy()
        longest = lengths if groups is None else np.array([lengths[group].max() for group in groups])
        per_batch = self.batch_examples or max(1, (self.batch_tokens or 1) * len(self) // max(1, int(lengths.sum())))
        number = np.arange(count) // max(1, WINDOW * per_batch * count // len(self))
        # Every second window runs from long to short, so that a micro-batch over a border still holds like lengths.
        order = order[np.lexsort((np.where(number % 2, -longest[order], longest[order]), number))]
        if groups is not None:
            order = np.array([index for at in order for index in _shuffled(groups[at], generator)])
        plan = EpochPlan(order, self._cut(lengths[order]))
        return plan.moved(torch.randperm(len(plan), generator=generator).numpy())

    def _cut(self, lengths: np.ndarray) -> np.ndarray:
        """Return where micro-batches begin that keep within the limit, with the end behind; `lengths` are in order."""
        count = len(lengths)
        if self.batch_examples is not None:
            return np.append(np.arange(0, count, self.batch_examples), count)
        limit, at, bounds = self.batch_tokens or 0, 0, [0]
        while at < count:
            some = lengths[at : at + 1 + limit // max(1, int(lengths[at]))]
            within = np.maximum.accumulate(some) * np.arange(1, len(some) + 1) <= limit
            at += max(1, len(some) if within.all() else int(within.argmin()))
            bounds.append(at)
        return np.array(bounds)

    def padded(self, plan: EpochPlan) -> np.ndarray:
        """Return the padded tokens of each micro-batch of a plan, [micro-batches]."""
        return np.maximum.reduceat(self.lengths[plan.order], plan.bounds[:-1]) * np.diff(plan.bounds)

    def tokens(self, plan: EpochPlan) -> np.ndarray:
        """Return the tokens of each micro-batch of a plan that are not padding, [micro-batches]."""
        return np.add.reduceat(self.lengths[plan.order], plan.bounds[:-1])

    def collate(self, indices: Sequence[int], pad_id: int) -> Batch:
        """Pad the examples at `indices` into one batch, on the right."""
        return self.together([self.encoded[index] for index in indices], pad_id)


class Epoch:
    """The batches of one epoch in the plan's order, each made when it is asked for, and anew for every pass."""

    def __init__(self, batches: Batches, number: int, pad_id: int):
        self.batches, self.number, self.pad_id = batches, number, pad_id

    def __iter__(self) -> Iterator[Batch]:
        for indices in self.batches.plan(self.number):
            yield self.batches.collate(indices, self.pad_id)


def by_prompt(rows: Sequence[Encoded]) -> list[list[int]]:
    """List the positions of the examples that have the same prompt, the ids before the first trained one.

    An example is by itself where its prompt is too short to be shared, and where all examples have one prompt, which
    every micro-batch shares as it is.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        length = next((at for at, label in enumerate(row.labels) if label != IGNORED), len(row.ids))
        key = tuple(row.ids[:length]) if length >= SHARED else (-1, index)
        groups.setdefault(key, []).append(index)
    return list(groups.values()) if len(groups) > 1 else [[index] for index in range(len(rows))]


def _shuffled(group: list[int], generator: torch.Generator) -> list[int]:
    """Shuffle a group; one example draws nothing."""
    if len(group) == 1:
        return group
    return [group[at] for at in torch.randperm(len(group), generator=generator).tolist()]


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad rows to the longest of them, on the right: ids with `pad_id`, labels with -100."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for number, row in enumerate(rows):
        length = len(row.ids)
        ids[number, :length] = torch.tensor(row.ids, dtype=torch.long)
        labels[number, :length] = torch.tensor(row.labels, dtype=torch.long)
        mask[number, :length] = 1
    trained = int((labels[:, 1:] != IGNORED).sum())
    return Batch(ids, mask, labels, trained, int(mask.sum()), len(rows))


_collate = collate
"""The function, where a parameter has its name."""


def _seed(seed: int, epoch: int) -> int:
    """Return a 63-bit seed for the epoch; seeds and epochs that differ by one give unrelated orders."""
    return int.from_bytes(hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()[:8], "big") >> 1
