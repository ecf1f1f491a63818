"""A padded micro-batch as the engine computes it: what predicts, what it predicts, for which row, along which tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.data.batches import Batch
from peftkit.data.encode import IGNORED
from peftkit.kernels.tree import Tree, grow


@dataclass(frozen=True)
class PackedBatch:
    """A micro-batch: inputs of the body, Q predictions of its rows, and the P different ones that are computed."""

    inputs: dict[str, Tensor]
    """What the body is called with: flat tokens [1, N] and their positions, or padded rows [B, T] and their mask."""
    tree: Tree | None
    """Along which the flat tokens stand; None for padded rows."""
    sources: Tensor
    """[P] long: which of the N or B * T hidden states predict."""
    targets: Tensor
    """[P] long: the ids that they predict."""
    weights: Tensor | None
    """[P]: how many rows train on the prediction; None where each is one row's."""
    rows: Tensor
    """[Q] long: the row of each prediction, in the order of rows and tokens."""
    merged: Tensor | None
    """[Q] long: which of the P each of the Q is; None where they are the same."""
    ends: Tensor
    """[B] long: which of the hidden states is that of a row's last token."""
    trained: int
    """Terms of the loss."""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors [B, ...] beside the rows."""
    lengths: tuple[int, ...] | None = None
    """[B]: tokens of each padded row where they run one after the other, without padding; None where all run as one."""
    prompt: Tensor | None = None
    """[B, T] bool: the tokens of padded rows before the first trained one, which is what is answered."""
    columns: Tensor | None = None
    """[C] long: positions at which a model that is not taken apart computes logits; targets are [B * C] then."""

    def to(self, device: torch.device) -> PackedBatch:
        """Return it with its tensors on `device`, but for `rows`, `merged` and `ends`, which few objectives read."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            tree=None if self.tree is None else self.tree.to(device),
            sources=self.sources.to(device),
            targets=self.targets.to(device),
            weights=moved(self.weights),
            extras={name: tensor.to(device) for name, tensor in self.extras.items()},
            prompt=moved(self.prompt),
            columns=moved(self.columns),
        )


def flat(batch: Batch, share: bool, bounded: bool = False) -> PackedBatch:
    """Lay a batch out along a tree; what rows have in common, predictions included, is there once with `share`.

    With `bounded`, and nothing shared, the inputs say where each row begins and ends.
    """
    lengths = batch.attention_mask.sum(1).tolist()
    tree = grow([row[:length] for row, length in zip(batch.input_ids.tolist(), lengths, strict=True)], share)
    sources, targets = [], []
    for places, row in zip(tree.rows, batch.labels.numpy(), strict=True):
        predicted = row[1 : len(places)]
        at = np.flatnonzero(predicted != IGNORED)
        sources.append(places[at])
        targets.append(predicted[at])
    pairs = np.stack([np.concatenate(sources), np.concatenate(targets)])
    pairs, merged, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    chosen = torch.from_numpy(np.ascontiguousarray(pairs))
    return PackedBatch(
        inputs={
            "input_ids": tree.ids[None],
            "position_ids": tree.positions[None],
            **(bounds([len(places) for places in tree.rows]) if bounded else {}),
        },
        tree=tree,
        sources=chosen[0],
        targets=chosen[1],
        weights=None if (counts == 1).all() else torch.from_numpy(counts.astype(np.float32)),
        rows=torch.from_numpy(np.repeat(np.arange(len(sources)), [len(each) for each in sources])),
        merged=torch.from_numpy(merged.reshape(-1)),
        ends=torch.tensor([int(places[-1]) for places in tree.rows]),
        trained=batch.trained,
        extras=batch.extras,
    )


def bounds(lengths: Sequence[int]) -> dict[str, Tensor]:
    """Tell layers, by the names that transformers has for it, the row of each flat token [1, N] and where rows end."""
    ends = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rows = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    return {"seq_idx": rows[None], "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


def padded(batch: Batch) -> PackedBatch:
    """Leave the rows of a batch as they are, padded to the longest."""
    at, width = (batch.labels[:, 1:] != IGNORED).nonzero(), batch.labels.shape[1]
    return PackedBatch(
        inputs={"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
        tree=None,
        sources=at[:, 0] * width + at[:, 1],
        targets=batch.labels[:, 1:][at[:, 0], at[:, 1]],
        weights=None,
        rows=at[:, 0],
        merged=None,
        ends=_ends(batch),
        trained=batch.trained,
        extras=batch.extras,
        prompt=prompts(batch),
    )


def whole(batch: Batch) -> PackedBatch:
    """Leave the rows as they are, for a model that computes all logits at positions on which some row trains."""
    columns = trained_positions(batch.labels)
    targets = batch.labels[:, 1:][:, columns]
    at = (targets != IGNORED).nonzero()
    return PackedBatch(
        inputs={"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
        tree=None,
        sources=torch.arange(targets.numel()),
        targets=targets.flatten(),
        weights=None,
        rows=at[:, 0],
        merged=at[:, 0] * len(columns) + at[:, 1],
        ends=_ends(batch),
        trained=batch.trained,
        extras=batch.extras,
        prompt=prompts(batch),
        columns=columns,
    )


def prompts(batch: Batch) -> Tensor:
    """Return which tokens [B, T] stand before the first one that a row trains on; all where it trains on none."""
    trained = batch.labels != IGNORED
    trained[:, 0] = False
    return (trained.cumsum(1) == 0) & batch.attention_mask.bool()


def row_by_row(run: Callable[..., Tensor], batch: PackedBatch) -> Tensor:
    """Return what `run` makes of the prompt and the inputs, [B, T, ...].

    That is of all rows at once, or of each by itself, zeros behind it.
    """
    if batch.lengths is None:
        return run(batch.prompt, **batch.inputs)
    width, made = batch.inputs["input_ids"].shape[1], []
    for row, length in enumerate(batch.lengths):
        prompt = None if batch.prompt is None else batch.prompt[row : row + 1, :length]
        y = run(prompt, **{name: x[row : row + 1, :length] for name, x in batch.inputs.items()})
        made.append(F.pad(y, (0, 0, 0, width - length)))
    return torch.cat(made)


def trained_positions(labels: Tensor) -> Tensor:
    """Return the positions [C] of `labels` [B, T] whose next label at least one row trains on; the first if none is."""
    positions = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten()
    return positions if len(positions) else torch.arange(labels.shape[1] - 1)[:1]


def _ends(batch: Batch) -> Tensor:
    rows, width = batch.attention_mask.shape
    return torch.arange(rows) * width + batch.attention_mask.sum(1).cpu() - 1
