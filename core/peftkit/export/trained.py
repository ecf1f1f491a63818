"""A finished run opened again: its base model, and its adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from peftkit import recipe as recipes
from peftkit.adaptation import DESCRIPTION, TENSORS, Adaptation, load_adapter
from peftkit.errors import PeftkitError
from peftkit.models import configuration
from peftkit.models import folder as folders
from peftkit.models.load import LoadedModel, load
from peftkit.models.quantize import forget_originals
from peftkit.models.samples import logits


@dataclass
class Trained:
    """A run's model in fp32 on the CPU with its adapter attached."""

    recipe: recipes.Recipe
    base: LoadedModel
    adaptation: Adaptation
    dtype: torch.dtype
    """What the original weights are stored as."""
    effect: float
    """The largest change of a logit on the sample prompts that the adapter makes."""

    def report(self) -> dict[str, Any]:
        """Return what every export tells about its origin."""
        methods = [method.name for method in self.adaptation.described]
        return {"base": self.base.name, "methods": methods, "adapter_effect": self.effect}


def read_run(run: Path) -> recipes.Recipe:
    """Read the recipe of a run; PeftkitError where `run` is no finished run."""
    if not (run / "recipe.yaml").is_file():
        raise PeftkitError(
            f"{run} is not a run folder: there is no recipe.yaml in it. Name a folder that training wrote."
        )
    if not (run / "adapter" / DESCRIPTION).is_file():
        raise PeftkitError(
            f"{run} has no adapter yet: its training did not finish. Continue it with `peft train` and --resume."
        )
    return recipes.load(run / "recipe.yaml")


def open_run(run: Path, *, packed: bool = False) -> Trained:
    """Load the run's base model in fp32 and attach its adapter.

    The base stands in its original weights, or `packed` as it was trained on. Raises PeftkitError where `run` is no
    finished run, and for an adapter of another base, damaged, or not finite.
    """
    recipe = read_run(run)
    base = load(recipe.model, dtype=torch.float32, quantization=recipe.quantization if packed else None)
    dtype = torch.float32 if base.source is None else _stored_dtype(base)
    before = logits(base.model, base.tokenizer)
    storage = base.storage if packed else None
    adaptation = load_adapter(base.model, run / "adapter", base.fingerprint, quantization=storage, keep_base=False)
    for key, tensor in adaptation.state().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PeftkitError(f"{run / 'adapter' / TENSORS}: the tensor {key} holds NaN or infinity.")
    forget_originals(base.model)
    base.model.eval()
    effect = float((logits(base.model, base.tokenizer, adaptation.soft_ids) - before).abs().max())
    return Trained(recipe, base, adaptation, dtype, effect)


def _stored_dtype(base: LoadedModel) -> torch.dtype:
    """Return the dtype of the original weights; of a folder of packed ones, what its config.json says of them."""
    source = cast(Path, base.source)
    if base.has_originals:
        return folders.stored_dtype(folders.shards(source))
    return cast(Any, configuration.from_folder(source)).dtype or torch.float32
