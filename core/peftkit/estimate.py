"""The memory that a run will take, part by part, found by running one step on tensors that hold nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from peftkit.device import autocast, choose_device, choose_precision, mixes, resident_memory
from peftkit.engine.cross_entropy import CHUNK
from peftkit.engine.engine import Arrangement, Engine, possible
from peftkit.layout import Layout, own_parameters
from peftkit.models.folder import description
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers, state_bytes
from peftkit.quantization.packed import PackedLinear
from peftkit.training.heap import heap_peak
from peftkit.training.loss import sum_cross_entropy
from peftkit.training.memory import heaviest, room
from peftkit.training.rungs import Rung, checkpoint_gradients, rungs

if TYPE_CHECKING:
    from peftkit.adaptation import Adaptation
    from peftkit.data.batches import Batch, Batches
    from peftkit.models.loaded import LoadedModel
    from peftkit.recipe import Recipe, TrainSection

LARGEST = 64
"""So many micro-batches of the most padded tokens are looked at more closely."""
DRAWING = 64 << 20
"""More bytes than drawing the loss curve takes."""
MOMENTS = {"loading": "while the model is loaded", "step": "in a training step", "finish": "when the run is finished"}
"""In words when the peak of a run is."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by part on the device that trains: the size that each part grows to, and what of it is there at the peak.

    The parts are `process` (Python and the libraries; on the CPU alone), `weights` (packed where they are quantized,
    the adapters among them), `optimizer` (its states), `gradients`, `activations` (what the forward pass keeps for the
    backward pass), and `temporary` (all else that is held at the peak: logits, unpacked weights, what loading needs,
    gaps in the heap).
    """

    device: str
    precision: str
    rows: int
    tokens: int
    """Of the largest micro-batch: rows, and padded tokens of a row."""
    moment: str
    """When the peak is: in `loading`, in a training `step`, or at the `finish`, when the loss curve is drawn."""
    parts: dict[str, int]
    at_peak: dict[str, int]
    rung: str | None = None
    """What the run gives up for memory, where the recipe has `train.memory`."""
    allowed: int | None = None
    """Bytes that the run may take there."""

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return sum(self.at_peak.values())

    def or_higher(self, moment: str, optimizer: int, temporary: int) -> Estimate:
        """Return the estimate with the peak at `moment`, if what is held then beside the weights is more."""
        there = {"process": self.parts["process"], "weights": self.parts["weights"], "optimizer": optimizer}
        at_peak = {**dict.fromkeys(self.parts, 0), **there, "temporary": temporary}
        if sum(at_peak.values()) <= self.peak:
            return self
        parts = {**self.parts, "temporary": max(temporary, self.parts["temporary"])}
        return replace(self, moment=moment, parts=parts, at_peak=at_peak)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, the peak among them."""
        return {
            "peak_bytes": self.peak,
            "peak_in": self.moment,
            "device": self.device,
            "precision": self.precision,
            "micro_batch": {"rows": self.rows, "tokens": self.tokens},
            "parts": {name: {"bytes": size, "at_peak": self.at_peak[name]} for name, size in self.parts.items()},
            **({} if self.rung is None else {"rung": self.rung, "allowed_bytes": self.allowed}),
        }


def estimate(recipe: Recipe, loaded: LoadedModel, adaptation: Adaptation, batches: Batches) -> Estimate:
    """Estimate the memory of a run of `recipe`, whose model is loaded on the meta device and has its adapters."""
    section, model = recipe.train, cast(nn.Module, loaded.model)
    device = choose_device(section.device)
    precision = choose_precision(section.precision, device)
    process = process_memory(model, device, precision)
    weights = sum(_size(tensor) for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values())
    optimizer = state_bytes(
        adaptation.groups(section.learning_rate, section.weight_decay), section.optimizer, device=device
    )
    if section.gradient_checkpointing:
        checkpoint_gradients(model)
    whole = largest(batches, model, loaded.tokenizer.pad_token_id)
    # What is free is so beside what this process holds.
    held = resident_memory() if device.type == "cpu" else 0
    allowed = None if section.memory is None else held + room(section.memory, device, held)

    def on(rung: Rung) -> Estimate:
        batch, passes = heaviest(rung, whole, min(section.accumulation, len(batches.plan(0))))
        if section.memory is not None:
            rung.apply(model)
        step = run_step(model, adaptation, batch, section, device, precision, passes=passes)
        step = step.elsewhere() if rung.offloaded else step
        parts = {
            "process": process,
            "weights": weights,
            "optimizer": optimizer,
            "gradients": sum(_size(parameter) for _, parameter in adaptation.parameters()),
            "activations": step.activations,
            "temporary": step.at_peak["temporary"] + step.gaps,
        }
        rows, tokens = batch.input_ids.shape
        at_peak = {**parts, **step.at_peak, "temporary": parts["temporary"]}
        name = None if allowed is None else str(rung)
        return Estimate(device.type, precision, rows, tokens, "step", parts, at_peak, name, allowed)

    ladder = rungs(section, model, batches, device)
    found = next((one for one in map(on, ladder) if allowed is None or one.peak <= allowed), None) or on(ladder[-1])
    if device.type != "cpu":
        return found
    found = found.or_higher("loading", 0, loading_memory(loaded) - weights)
    # Drawing takes longer than the rest of an estimate, and never takes as much as a model of some size.
    small = found.peak - process - weights - optimizer < DRAWING
    return found.or_higher("finish", optimizer, drawing_memory()) if small else found


@dataclass(frozen=True)
class Step:
    """What a step holds in bytes: after its forward pass, and at its peak (`gradients`, `activations`, `temporary`)."""

    activations: int
    at_peak: dict[str, int]
    gaps: int = 0
    """What the heap of a CPU takes beyond that, in chunks that it does not use again."""

    def elsewhere(self) -> Step:
        """Return the step with its activations off the device."""
        return Step(0, {**self.at_peak, "activations": 0}, self.gaps)


def run_step(
    model: nn.Module,
    adaptation: Adaptation,
    batch: Batch,
    section: TrainSection,
    device: torch.device,
    precision: str,
    passes: int = 1,
    arrangement: Arrangement | None = None,
) -> Step:
    """Run `passes` forward and backward passes on a batch as the training loop does, without storage or computing.

    With more than one, the gradients of the first are there in those that follow. Without an `arrangement` it is what
    the recipe asks for, as far as it is told without running.
    """
    # FakeTensorMode brings libraries along that training does without: not before the process is measured.
    from peftkit.training.live import Live, without_storage

    lengths = batch.attention_mask.sum(1).tolist()
    engine = Engine(model, arrangement or possible(section, model, lengths, adaptation.methods))
    if bool(batch.attention_mask.all()):
        # transformers leaves out a mask without padding, and can tell that of a boolean one alone, if it has storage.
        batch = replace(batch, attention_mask=batch.attention_mask.bool().to(device))
    ready = engine.lay(batch)
    training = model.training
    model.train()
    with without_storage(model, device) as state, Live(state) as live:
        for _ in range(passes):
            laid = ready.to(device)
            with engine.running(laid):
                with autocast(device, precision if mixes(model) else "fp32"):
                    loss = engine.loss(laid, device, section.label_smoothing)
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
    gaps = heap_peak(live.events) - sum(sizes.values()) if device.type == "cpu" else 0
    return Step(sum(kept.values()), sizes, gaps)


def largest(batches: Batches, model: nn.Module, pad_id: int) -> Batch:
    """Return the micro-batch of the first epoch that takes most memory.

    Hidden states come with each token and logits with those that are trained on, a chunk of them at a time: which of
    them weighs more is judged by the sizes of the model.
    """
    config: Any = getattr(model, "config").get_text_config()  # noqa: B009
    hidden = 16 * config.hidden_size * max(1, len(Layout(model).blocks))

    def tokens(indices: Sequence[int]) -> int:
        return len(indices) * max(batches.lengths[index] for index in indices)

    def weight(batch: Batch) -> int:
        return batch.tokens * hidden + 3 * min(batch.trained, CHUNK) * config.vocab_size

    first = sorted(batches.plan(0), key=tokens, reverse=True)[:LARGEST]
    return max((batches.collate(indices, pad_id) for indices in first), key=weight)


def process_memory(model: nn.Module, device: torch.device, precision: str) -> int:
    """Measure what this process takes before any weight is there, once the code that training runs is loaded.

    A step of a tiny model loads the kernels of the libraries, and those that unpack quantized weights are chosen. 0 on
    other devices than the CPU: what counts there are tensors.
    """
    if device.type != "cpu":
        return 0
    small = tiny("llama").train()
    ids = torch.ones(2, 32, dtype=torch.long)
    # Products of some size have buffers of their own.
    wide = nn.Linear(512, 512)
    with autocast(device, precision):
        logits = small(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        loss = sum_cross_entropy(logits, ids) + wide(torch.ones(128, 512)).sum()
    loss.backward()
    trained = list(small.parameters())
    keys = [str(index) for index in range(len(trained))]
    Optimizers([{"params": trained, "keys": keys, "lr": 1e-3, "weight_decay": 0.0}]).step()
    nn.utils.clip_grad_norm_(trained, 1.0)
    computed = torch.bfloat16 if precision == "bf16" else torch.float32
    for quantizer in {module.quantizer for module in _packed(model)}:
        quantizer.unpack(quantizer.quantize(torch.ones(64, 4096)), (64, 4096), computed)
    return resident_memory()


def drawing_memory() -> int:
    """Measure what drawing the loss curve takes, which comes last in a run, when its libraries are loaded."""
    from peftkit.training import plot

    before = resident_memory()
    with tempfile.TemporaryDirectory() as folder:
        plot.draw_loss(Path(folder) / "loss.png", [{"step": 1, "loss": 1.0, "lr": 1.0}], "loss")
    return max(0, resident_memory() - before)


def loading_memory(loaded: LoadedModel) -> int:
    """Return the most bytes that loading a model takes on the CPU, told by the model on the meta device.

    Layers are packed one by one, each dense until it is, unless the checkpoint holds them packed. A checkpoint of which
    nothing is packed is mapped whole, and stays beside its weights until all are converted where they have another
    dtype. A model with random weights is made whole in fp32, and packed while that is there.
    """
    model = cast(nn.Module, loaded.model)
    own = [parameter for _, parameter in own_parameters(model)]
    packed = {(layer.quantizer, layer.out_features, layer.in_features): layer for layer in _packed(model)}
    packing = max(map(_packing, packed.values()), default=0) if loaded.has_originals else 0
    held = sum(map(_size, own)) + sum(_size(part) for layer in _packed(model) for part in layer.buffers(recurse=False))
    if loaded.source is None:
        dense = sum(layer.out_features * layer.in_features for layer in _packed(model))
        dense += sum(parameter.numel() for parameter in own)
        return 4 * dense + packing + (held - sum(map(_size, own)))
    stored = _stored_dtype(loaded.source)
    converted = [parameter.numel() * stored.itemsize for parameter in own if parameter.dtype != stored]
    return held + (max([packing, *converted]) if packed else sum(converted))


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype in which a checkpoint is stored, as its config.json says."""
    described = description(folder)
    found = getattr(torch, str(described.get("dtype") or described.get("torch_dtype")), None)
    return found if isinstance(found, torch.dtype) else torch.float32


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
