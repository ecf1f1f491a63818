"""What a recipe would do, found without reading a weight: what is trained, on what, how long, in how much memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from peftkit.adaptation import Adaptation, attach, check_methods
from peftkit.data.encode import Encoded, encode
from peftkit.data.source import load as load_data
from peftkit.data.template import choose
from peftkit.engine.device import choose_device, choose_precision
from peftkit.errors import PeftkitError
from peftkit.estimation.estimate import Estimate, estimate
from peftkit.models.load import load as load_model
from peftkit.training.preparation import batched, check_length, nothing_left, weights_dtype
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
    memory: Estimate
    """Estimated bytes by part."""
    notices: list[str] = field(default_factory=list)


def plan(recipe: Recipe) -> Plan:
    """Plan a recipe on the meta device; what would stop the run at its start is raised as a PeftkitError."""
    section = recipe.train
    check(recipe)
    # The meta device would get the checkpoint's own dtype, as a GPU does.
    dtype = torch.float32 if recipe.model.dtype == "auto" and choose_device(section.device).type == "cpu" else None
    loaded = load_model(recipe.model, device="meta", dtype=dtype, weights=False, quantization=recipe.quantization)
    methods = [method.with_tokenizer(loaded.tokenizer) for method in recipe.methods()]
    own = any(names for _, names in check_methods(loaded.model, methods))
    precision = choose_precision(section.precision, choose_device(section.device))
    lean = weights_dtype(recipe, precision, loaded.model, own=own)
    for parameter in loaded.model.parameters() if lean is not None else ():
        parameter.data = parameter.data.to(lean)
    adaptation = attach(loaded.model, methods, seed=section.seed, keep_base=False)
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
    memory = estimate(recipe, loaded, adaptation, batches)
    notices = [] if data.name == recipe.dataset.name else [f"dataset: {data.name} is read ({data.origin})"]
    if memory.allowed is not None and memory.peak > memory.allowed:
        notices.append("train.memory: the estimate is above it by every memory plan")
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
        memory=memory,
        notices=notices,
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


def _matched(adaptation: Adaptation) -> dict[str, tuple[int, str]]:
    matched: dict[str, tuple[int, str]] = {}
    for part in adaptation.parts:
        sites = [(adapter.site.role or adapter.site.path.split(".")[-1], key) for key, adapter in part.adapters.items()]
        own = [("own " + name.split(".")[-1], name) for name in part.own]
        for label, name in sites + own:
            count, first = matched.get(label, (0, name))
            matched[label] = (count + 1, first)
    return matched
