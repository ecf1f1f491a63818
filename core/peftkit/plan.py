"""What a recipe would do, found without reading a weight: what is trained, on what, how long, in how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from peftkit import adapt
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded, encode
from peftkit.data.source import load as load_data
from peftkit.data.template import choose
from peftkit.errors import PeftkitError
from peftkit.layout import own_parameters
from peftkit.models.load import load as load_model
from peftkit.optim.build import state_bytes
from peftkit.training.device import choose_device, choose_precision
from peftkit.training.preparation import batched, check_length, nothing_left
from peftkit.training.scoring import check
from peftkit.training.windows import count_steps

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


@dataclass
class Plan:
    """What `peft validate` and `--dry-run` show."""

    model: str
    architecture: str
    methods: tuple[str, ...]
    matched: dict[str, tuple[int, str]]
    """Adapted modules by role, or own parameters: their number and one of them."""
    trainable: int
    total: int
    dataset: str
    examples: int
    dropped: int
    steps: int
    epochs: float
    tokens: int
    """Non-padding tokens of the whole run."""
    example: list[tuple[str, bool]]
    """The first example decoded: (text, whether it is trained on)."""
    memory: dict[str, int]
    """Estimated bytes by part."""
    notices: list[str] = field(default_factory=list)


def plan(recipe: Recipe) -> Plan:
    """Plan a recipe on the meta device; what would stop the run at its start is raised as a PeftkitError."""
    section = recipe.train
    check(recipe)
    loaded = load_model(recipe.model, device="meta", weights=False, quantization=recipe.quantization)
    methods = [method.with_tokenizer(loaded.tokenizer) for method in recipe.methods()]
    adaptation = adapt.attach(loaded.model, methods, seed=section.seed, keep_base=False)
    data = load_data(recipe.dataset, "train")
    encoded = encode(
        data.examples,
        choose(recipe.dataset.template, loaded.tokenizer).with_soft(adaptation.soft_ids),
        loaded.tokenizer,
        section.max_length,
    )
    if not encoded.rows:
        raise PeftkitError(nothing_left(data.name, len(data.examples), section.max_length))
    check_length(loaded.model, encoded.rows)
    batches = batched(encoded.rows, section)
    steps = count_steps(batches, section.accumulation, section.epochs, section.max_steps)
    per_epoch = -(-len(batches.plan(0)) // section.accumulation)
    epochs = steps / per_epoch
    return Plan(
        model=loaded.name,
        architecture=str(getattr(loaded.model.config, "model_type", type(loaded.model).__name__)),
        methods=tuple(method.name for method in methods),
        matched=_matched(adaptation),
        trainable=adaptation.trainable,
        total=adaptation.total,
        dataset=data.name,
        examples=len(encoded.rows),
        dropped=encoded.dropped,
        steps=steps,
        epochs=epochs,
        tokens=round(epochs * sum(len(row.ids) for row in encoded.rows)),
        example=pieces(encoded.rows[0], loaded.tokenizer),
        memory=estimate(loaded.model, adaptation, batches, section),
        notices=[] if data.name == recipe.dataset.name else [f"dataset: {data.name} is read ({data.origin})"],
    )


def pieces(row: Encoded, tokenizer: Any) -> list[tuple[str, bool]]:
    """Decode an encoded example into runs of text that are trained on or not."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(row.ids, row.labels, strict=True):
        trained = label != -100
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids, skip_special_tokens=False), trained) for ids, trained in runs]


def estimate(model: nn.Module, adaptation: adapt.Adaptation, batches: Batches, section: Any) -> dict[str, int]:
    """Estimate bytes by part: weights, gradients, optimizer states, and activations of the largest micro-batch.

    Activations are what autograd would save on that batch, counted without computing; with bf16 half of that. What the
    libraries themselves take and temporary buffers are not in it.
    """
    own = [*(parameter for _, parameter in own_parameters(model)), *_buffers(model)]
    trained = sum(parameter.numel() * parameter.element_size() for _, parameter in adaptation.parameters())
    adapters = sum(t.numel() * t.element_size() for key, t in adaptation.state().items() if "/own/" not in key)
    shape = max((_padded(batches, indices) for indices in batches.plan(0)), key=lambda pair: pair[0] * pair[1])
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    half = choose_precision(section.precision, choose_device(section.device)) == "bf16"
    return {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in own) + adapters,
        "gradients": trained,
        "optimizer": state_bytes(adaptation.groups(section.learning_rate, section.weight_decay), section.optimizer),
        "activations": saved_bytes(model, shape) // (2 if half else 1),
    }


def saved_bytes(model: nn.Module, shape: Sequence[int]) -> int:
    """Count the bytes that autograd saves in one forward pass and loss on a batch [rows, tokens], each storage once.

    Weights and batch are tensors without storage that claim to be on the CPU, so that the CPU's kernels are chosen.
    """
    storages: dict[int, tuple[int, Any]] = {}
    training = model.training
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        state: dict[str, Tensor] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            state[name] = torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)
        weights = {tensor.untyped_storage()._cdata for tensor in state.values()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                storages[storage._cdata] = (storage.nbytes(), storage)
            return tensor

        ids = torch.zeros(tuple(shape), dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = torch.func.functional_call(model, state, (), inputs).logits.float()
            nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    model.train(training)
    return sum(size for size, _ in storages.values())


def _buffers(model: nn.Module) -> list[Tensor]:
    """List the model's own buffers: packed weights among them."""
    return [buffer for name, buffer in model.named_buffers() if ".seated." not in f".{name}"]


def _padded(batches: Batches, indices: Sequence[int]) -> tuple[int, int]:
    return len(indices), max(len(batches.encoded[index].ids) for index in indices)


def _matched(adaptation: adapt.Adaptation) -> dict[str, tuple[int, str]]:
    matched: dict[str, tuple[int, str]] = {}
    for part in adaptation.parts:
        sites = [(adapter.site.role or adapter.site.path.split(".")[-1], key) for key, adapter in part.adapters.items()]
        own = [("own " + name.split(".")[-1], name) for name in part.own]
        for label, name in sites + own:
            count, first = matched.get(label, (0, name))
            matched[label] = (count + 1, first)
    return matched
