"""The memory that a run will take, part by part, found by running one step on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftkit.layout import Layout, own_parameters
from peftkit.optim.build import Optimizers, state_bytes
from peftkit.quantization.packed import PackedLinear
from peftkit.training.device import autocast, choose_device, choose_precision, resident_memory
from peftkit.training.loss import loss_at, sum_cross_entropy, trained_positions
from peftkit.training.preparation import checkpoint_gradients

if TYPE_CHECKING:
    from peftkit.adapt import Adaptation
    from peftkit.data.batches import Batch, Batches
    from peftkit.recipe import Recipe, TrainSection

LARGEST = 64
"""So many micro-batches of the most padded tokens are looked at more closely."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part on the device that trains: the size that each part grows to, and what of it is there at the peak.

    The parts are `process` (Python and the libraries; on the CPU alone), `weights` (packed where they are quantized,
    the adapters among them), `optimizer` (its states), `gradients`, `activations` (what the forward pass keeps for the
    backward pass), and `temporary` (all else that is held at the peak: logits, unpacked weights, what loading needs).
    """

    device: str
    precision: str
    rows: int
    tokens: int
    """Of the largest micro-batch: rows, and padded tokens of a row."""
    moment: str
    """When the peak is: in a training `step`, or in `loading`."""
    parts: dict[str, int]
    at_peak: dict[str, int]

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return sum(self.at_peak.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the peak among them."""
        return {
            "peak_bytes": self.peak,
            "peak_in": self.moment,
            "device": self.device,
            "precision": self.precision,
            "micro_batch": {"rows": self.rows, "tokens": self.tokens},
            "parts": {name: {"bytes": size, "at_peak": self.at_peak[name]} for name, size in self.parts.items()},
        }


def estimate(recipe: Recipe, model: nn.Module, adaptation: Adaptation, batches: Batches, pad_id: int) -> Estimate:
    """Estimate the memory of a run of `recipe`, whose `model` is on the meta device with its adapters attached."""
    section = recipe.train
    device = choose_device(section.device)
    precision = choose_precision(section.precision, device)
    process = process_memory(model, device, precision)
    weights = sum(_size(tensor) for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    optimizer = state_bytes(
        adaptation.groups(section.learning_rate, section.weight_decay), section.optimizer, device=device
    )
    if section.gradient_checkpointing:
        checkpoint_gradients(model)
    batch = largest(batches, model, pad_id)
    step = run_step(model, adaptation, batch, section, device, precision, passes=min(2, section.accumulation))
    parts = {
        "process": process,
        "weights": weights,
        "optimizer": optimizer,
        "gradients": sum(_size(parameter) for _, parameter in adaptation.parameters()),
        "activations": step.activations,
        "temporary": step.at_peak["temporary"],
    }
    at_peak, moment = {**parts, **step.at_peak}, "step"
    loading = loading_memory(recipe, model) if device.type == "cpu" else weights
    if loading > sum(at_peak.values()) - process:
        at_peak, moment = {**dict.fromkeys(parts, 0), "process": process, "weights": weights}, "loading"
        at_peak["temporary"] = parts["temporary"] = loading - weights
    rows, tokens = batch.input_ids.shape
    return Estimate(device.type, precision, rows, tokens, moment, parts, at_peak)


@dataclass(frozen=True)
class Step:
    """What one step holds in bytes: after its forward pass, and at its peak by `gradients`, `activations` and the rest."""

    activations: int
    at_peak: dict[str, int]


def run_step(
    model: nn.Module,
    adaptation: Adaptation,
    batch: Batch,
    section: TrainSection,
    device: torch.device,
    precision: str,
    passes: int = 1,
) -> Step:
    """Run `passes` forward and backward passes on a batch as the training loop does, without storage or computing.

    With more than one, the gradients of the first are there in those that follow.
    """
    # FakeTensorMode brings libraries along that training does without: not before the process is measured.
    from peftkit.training.live import Live, without_storage

    positions = trained_positions(batch.labels)
    training = model.training
    model.train()
    with without_storage(model, device) as state, Live(state) as live:
        for _ in range(passes):
            with autocast(device, precision):
                loss = loss_at(model, batch, positions, device, section.label_smoothing)
            moment = len(live.events)
            (loss / max(1, batch.trained)).backward()
        penalty = adaptation.penalty()
        if penalty is not None:
            penalty.backward()
        gradients = {live.number(tensor.grad) for tensor in state if tensor.grad is not None}
    model.train(training)
    kept = {number: size for number, size in live.alive(moment).items() if number not in gradients}
    sizes = {"gradients": 0, "activations": 0, "temporary": 0}
    for number, size in live.alive(live.highest()).items():
        kind = "gradients" if number in gradients else "activations" if number in kept else "temporary"
        sizes[kind] += size
    return Step(sum(kept.values()), sizes)


def largest(batches: Batches, model: nn.Module, pad_id: int) -> Batch:
    """Return the micro-batch of the first epoch that takes most memory.

    Hidden states come with each padded token and logits with each position that is trained on: which of them weighs
    more is judged by the sizes of the model.
    """
    config: Any = getattr(model, "config").get_text_config()  # noqa: B009
    hidden = 16 * config.hidden_size * max(1, len(Layout(model).blocks))

    def tokens(indices: Sequence[int]) -> int:
        return len(indices) * max(batches.lengths[index] for index in indices)

    def weight(batch: Batch) -> int:
        trained = len(batch.input_ids) * len(trained_positions(batch.labels))
        return batch.input_ids.numel() * hidden + 3 * trained * config.vocab_size

    first = sorted(batches.plan(0), key=tokens, reverse=True)[:LARGEST]
    return max((batches.collate(indices, pad_id) for indices in first), key=weight)


def process_memory(model: nn.Module, device: torch.device, precision: str) -> int:
    """Measure what this process takes before any weight is there, once all code that training runs is loaded.

    A step of one small layer loads the kernels of the libraries, and those that unpack quantized weights are chosen.
    0 on other devices than the CPU: what counts there are tensors.
    """
    if device.type != "cpu":
        return 0
    layer = nn.Linear(64, 64)
    group = {"params": list(layer.parameters()), "keys": ["weight", "bias"], "lr": 1e-3, "weight_decay": 0.0}
    with autocast(device, precision):
        logits = layer(torch.ones(1, 64, 64))
        sum_cross_entropy(logits, torch.zeros(1, 64, dtype=torch.long)).backward()
    Optimizers([group]).step()
    computed = torch.bfloat16 if precision == "bf16" else torch.float32
    for quantizer in {module.quantizer for module in _packed(model)}:
        quantizer.unpack(quantizer.quantize(torch.ones(64, 4096)), (64, 4096), computed)
    return resident_memory()


def loading_memory(recipe: Recipe, model: nn.Module) -> int:
    """Return the most bytes that loading the model takes on the CPU.

    Packed layers are read one by one, each dense while it is packed. A model with random weights is made whole in fp32
    before that.
    """
    own = sum(_size(parameter) for _, parameter in own_parameters(model))
    packed = sum(_size(part) for module in _packed(model) for part in module.buffers(recurse=False))
    alike = {(m.quantizer, m.out_features, m.in_features): m for m in _packed(model)}
    packing = max(map(_packing, alike.values()), default=0)
    if recipe.model.init is None:
        return own + packed + packing
    count = sum(parameter.numel() for _, parameter in own_parameters(model))
    dense = 4 * (count + sum(module.out_features * module.in_features for module in _packed(model)))
    return dense + packed + packing


def _packing(module: PackedLinear) -> int:
    """Return the most bytes held while the layer's weight is packed, the dense weight and the packed one included."""
    from peftkit.training.live import Live, fake

    with fake(), Live() as live:
        weight = torch.empty(module.out_features, module.in_features, dtype=module.dtype)
        module.quantizer.encode(weight.float())
    return sum(live.alive(live.highest()).values())


def _packed(model: nn.Module) -> Iterator[PackedLinear]:
    return (module for module in model.modules() if isinstance(module, PackedLinear))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
