"""What a training step can give up for memory without another loss: larger micro-batches, and kept activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peftkit.data.batches import Batch, Batches
from peftkit.data.encode import IGNORED
from peftkit.engine.engine import Engine
from peftkit.errors import PeftkitError
from peftkit.layout import Layout

Recomputed = Literal["nothing", "mlps", "layers"]
ROOMY = {"cpu": 512}
MANY = 2048
"""Tokens down to which splitting a micro-batch costs nearly nothing, on a CPU (by device) and elsewhere."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is computed: its losses and gradients are those of every other plan, but for rounding."""

    tokens: int | None = None
    """Padded tokens of a micro-batch at most: larger ones are split, a longer example is alone. None splits none."""
    recomputed: Recomputed = "nothing"
    """What is recomputed in the backward pass: the feed-forward part of each layer, or the layers."""
    offloaded: bool = False
    """Whether activations that are kept wait in the host's memory for the backward pass."""

    def __str__(self) -> str:
        parts = [] if self.tokens is None else [f"micro-batches of at most {self.tokens:,} tokens"]
        once_more = {"mlps": "the MLP of each layer computed again", "layers": "each layer computed again"}
        parts += [once_more[self.recomputed]] if self.recomputed in once_more else []
        parts += ["kept activations in the host's memory"] if self.offloaded else []
        return ", ".join(parts) or "as the recipe says"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, which make the plan anew."""
        return asdict(self)

    def apply(self, engine: Engine) -> None:
        """Let an engine keep, compute anew and send to the host what this plan says, and nothing else."""
        recompute(engine.model, self.recomputed)
        engine.offloads = self.offloaded

    def pieces(self, batch: Batch) -> list[Batch]:
        """Split a padded batch into those that are computed one after the other."""
        return [batch] if self.tokens is None else list(split(batch, self.tokens))


def memory_plans(model: nn.Module, batches: Batches, device: torch.device, *, checkpointing: bool) -> list[MemoryPlan]:
    """List the plans that a run may take, cheapest first; what its recipe says is the first.

    Micro-batches are split as long as that is nearly free, then activations are recomputed where the model can,
    then micro-batches are split down to the size of the longest example, and on a GPU the host keeps activations.
    """
    plans = [MemoryPlan(recomputed="layers" if checkpointing else "nothing")]
    sizes = _halves(batches)
    roomy = ROOMY.get(device.type, MANY)
    plans += [replace(plans[0], tokens=size) for size in sizes if size >= roomy]
    if plans[0].recomputed == "nothing":
        plans += [replace(plans[-1], recomputed=what) for what in _recomputable(model)]
    plans += [replace(plans[-1], tokens=size) for size in sizes if size < roomy]
    if device.type in ("cuda", "xpu"):
        plans.append(replace(plans[-1], offloaded=True))
    return plans


def _halves(batches: Batches) -> list[int]:
    """List a half, a quarter, and so on, of the padded tokens of the largest micro-batch, down to its longest row."""
    longest, size = int(batches.lengths.max()), int(batches.padded(batches.plan(0)).max())
    sizes = []
    while size > longest:
        size = max(size // 2, longest)
        sizes.append(size)
    return sizes


def split(batch: Batch, tokens: int) -> Iterator[Batch]:
    """Cut a padded batch into batches of its rows of at most `tokens` padded tokens, a longer row alone.

    Rows that begin alike stay together, as far as they fit. A batch that fits is left as it is.
    """
    if batch.input_ids.numel() <= tokens:
        yield batch
        return
    lengths = batch.attention_mask.sum(1).tolist()
    ids = batch.input_ids.tolist()
    taken: list[int] = []
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        if taken and max(lengths[other] for other in (*taken, row)) * (len(taken) + 1) > tokens:
            yield _take(batch, taken, lengths)
            taken = []
        taken.append(row)
    yield _take(batch, taken, lengths)


def _take(batch: Batch, rows: list[int], lengths: list[int]) -> Batch:
    width = max(lengths[row] for row in rows)

    def cut(tensor: Tensor) -> Tensor:
        return tensor[rows, :width]

    labels = cut(batch.labels)
    terms = None if batch.terms is None else [batch.terms[row] for row in rows]
    trained = int((labels[:, 1:] != IGNORED).sum()) if terms is None else sum(terms)
    mask = cut(batch.attention_mask)
    extras = {name: tensor[rows] for name, tensor in batch.extras.items()}
    return Batch(cut(batch.input_ids), mask, labels, trained, int(mask.sum()), len(rows), extras, terms)


# What is computed anew ---------------------------------------------------------------------------------------------


def checkpoint_gradients(model: Any) -> None:
    """Recompute activations in the backward pass; the non-reentrant kind works with a frozen base."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise PeftkitError(f"train.gradient_checkpointing: {kind} models do not support it; set it to false.")
    getattr(model, f"{_word(model)}_checkpointing_enable")({"use_reentrant": False})


def _word(model: Any) -> str:
    """Newer transformers say activation, older ones gradient, and warn about each other's word."""
    return "activation" if hasattr(type(model), "activation_checkpointing_enable") else "gradient"


def recompute(model: Any, what: Recomputed) -> None:
    """Recompute `what` in backward passes from now on, and nothing else."""
    word = _word(model)
    if getattr(model, f"is_{word}_checkpointing", False):
        getattr(model, f"{word}_checkpointing_disable")()
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Recomputed):
            del module.forward
    if what == "layers":
        checkpoint_gradients(model)
    elif what == "mlps":
        for path in _mlps(model):
            module = model.get_submodule(path)
            module.forward = _Recomputed(module)


class _Recomputed:
    """In the place of a module's forward: the same, whose activations are recomputed in the backward pass."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # By its class, which a module changes when adapters sit down on it.
        forward = type(self.module).forward
        if not (self.module.training and torch.is_grad_enabled()):
            return forward(self.module, *args, **kwargs)
        return checkpoint(forward, self.module, *args, use_reentrant=False, **kwargs)


def _recomputable(model: Any) -> list[Recomputed]:
    choices: list[Recomputed] = ["mlps"] if _mlps(model) else []
    return [*choices, "layers"] if getattr(model, "supports_gradient_checkpointing", False) else choices


def _mlps(model: nn.Module) -> list[str]:
    """List the paths of the feed-forward parts; none where the model's family has no module of its own for them."""
    try:
        return [site.path for site in Layout(model).hidden("mlp")]
    except PeftkitError:
        return []
