"""The one set-up of every command: from a recipe to a model that is ready, by the same stages in the same order.

family -> model source -> surgery -> quantization -> layout -> adapters -> sharding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftkit import recipe as recipes
from peftkit.adaptation import (
    DESCRIPTION,
    IMPORTED,
    OBJECTIVE,
    Adaptation,
    attach,
    check_methods,
    check_start,
    describe_adapter,
    go_on,
    load_adapter,
    load_children,
)
from peftkit.calibration import described, settled
from peftkit.data.template import Template, choose
from peftkit.device import COMPUTED, choose_device, choose_precision
from peftkit.errors import PeftkitError, hint
from peftkit.families import Family, family_of
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.models import trust
from peftkit.models.load import load
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import forget_originals
from peftkit.objectives import OBJECTIVES, Objective
from peftkit.quantization.weight import packed_shape
from peftkit.recipe import QuantizationSection, Recipe

ASKED = ("eval", "generation")
"""The sections of a recipe that have no part in what is trained: what is measured, and how text is generated."""
ASKED_OF_IMPORTED = (*ASKED, "dataset")
"""The same of an adapter that another library trained, of whose data nothing is known."""


@dataclass(kw_only=True)
class Assembled(LoadedModel):
    """A recipe's model: what it was loaded from, what it is computed with, and what is attached to it."""

    recipe: Recipe
    device: torch.device
    precision: str
    told: tuple[str, ...] = ()
    """What a person should know of the device and the precision."""
    attached: Adaptation | None = None
    """None where the base stands alone."""
    objective: Objective | None = None
    """Of a loaded adapter, the objective whose module was trained with it."""

    @property
    def adaptation(self) -> Adaptation:
        """What is attached; asked of a model that has its adapters."""
        assert self.attached is not None, "the base stands alone"
        return self.attached

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.model.config)

    @property
    def layout(self) -> Layout:
        """The sites of the model."""
        return Layout(self.module) if self.attached is None else self.attached.layout

    @property
    def template(self) -> Template:
        """The recipe's template, with the ids of soft prompts; PeftkitError where the tokenizer cannot serve it."""
        template = choose(self.recipe.dataset.template, self.tokenizer, self.recipe.dataset.special)
        if self.attached is None:
            return template
        return template.with_soft(self.attached.soft_ids).with_keys(self.attached.keys)

    @property
    def methods(self) -> list[dict[str, Any]] | None:
        """Names and options of what is attached; None where the base stands alone."""
        if self.attached is None:
            return None
        return [{"name": method.name, "options": method.options()} for method in self.attached.described]


def assemble(
    recipe: Recipe,
    adapter: Path | None = None,
    *,
    weights: bool = True,
    bare: bool = False,
    headed: bool = False,
    original: bool = False,
    loading: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    keep: Sequence[Path] = (),
) -> Assembled:
    """Load a recipe's base and attach its methods, freshly started, or the trained `adapter` of a folder.

    Without `weights` the model is on the meta device. A `bare` base gets no adapters, and an `original` one is not
    packed, whatever the recipe says. A `headed` adapter comes with the module of its objective, and one that has such a
    module is refused without. With `loading`, adapters wait for a saved state before they start. `device` and
    `dtype` replace the recipe's. The folders `keep` get the weights that examples decide, as `settled` says. What
    layout and tokenizer refuse is raised before a weight is read. Raises PeftkitError for every fault of the recipe,
    the files or the adapter.
    """
    device = device or choose_device(recipe.train.device)
    fresh = adapter is None and not bare
    quantization = None if original else recipe.quantization
    outline = None if weights and not fresh else _load_outline(recipe, device, quantization)
    chosen = None if outline is None else choose_precision(recipe.train.precision, device, outline.module)
    if outline is not None and chosen is not None and fresh:
        methods = methods_of(recipe, outline.tokenizer)
        load_children(outline.module, recipe.adapter_folders, outline.description)
        own = any(names for _, names in check_methods(outline.module, methods))
        dtype = dtype or training_dtype(recipe, chosen.name, outline.module, own=own)
    if outline is not None and not weights:
        # Built anew, as buffers take the dtype too.
        loaded = outline if dtype is None else _load_outline(recipe, device, quantization, dtype)
    else:
        # What is pruned is packed after that.
        packed = quantization if recipe.pruning is None else None
        loaded = load(recipe.model, device=device, dtype=dtype, quantization=packed)
        loaded = settled(loaded, recipe, keep, original=original)
    chosen = chosen or choose_precision(recipe.train.precision, device, loaded.module)
    told = () if chosen.notice is None else (chosen.notice,)
    assembled = Assembled(**vars(loaded), recipe=recipe, device=device, precision=chosen.name, told=told)
    if adapter is not None:
        assembled = attach_adapter(assembled, adapter, original=original, headed=headed)
    elif fresh:
        assembled = attach_methods(assembled, recipe, loading=loading)
        if not loading and not any(part.method.reads_originals for part in assembled.adaptation.parts):
            forget_originals(assembled.module)
    return _shard(assembled)


def read_run(run: Path, overrides: Sequence[str] = (), *, adapter: bool = True, otherwise: str = "") -> Recipe:
    """Read the recipe of a run folder; with `adapter`, a run without one is refused, and `otherwise` is another way.

    `overrides` are `key=value` texts of the sections that have no part in training, of an imported adapter those of
    `dataset` too; others are refused, and so is a run whose model has code that nobody on this machine has agreed to
    run.
    """
    if not (run / "recipe.yaml").is_file():
        raise PeftkitError(f"{run} is not a run folder: there is no recipe.yaml in it. Name one that training wrote.")
    if adapter and not (run / "adapter" / DESCRIPTION).is_file():
        more = f", or {otherwise}" if otherwise else ""
        raise PeftkitError(
            f"{run} has no adapter yet: its training did not finish. Continue it with `peft train` and --resume{more}."
        )
    imported = bool(overrides) and is_imported(run)
    for text in overrides:
        _check_asked(text, ASKED_OF_IMPORTED if imported else ASKED)
    return read_trusted(run, overrides)


def is_imported(run: Path) -> bool:
    """Say whether the adapter of a run was read from another library's folder."""
    folder = run / "adapter"
    return (folder / DESCRIPTION).is_file() and describe_adapter(folder).get(IMPORTED) is not None


def read_trusted(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe of a run; its plugins and its model's code have to be agreed to before they run."""
    recipe = recipes.load_run(run, overrides)
    trust.check(recipe.model, run / "recipe.yaml")
    return recipe


def agree(run: Path) -> None:
    """Agree to run the code of the model of a run folder, or of the adapter folder of one; this is kept."""
    place = next((place for place in (run, run.parent) if (place / "recipe.yaml").is_file()), None)
    if place is not None:
        trust.remember(recipes.load_run(place, agreed=True).model)


def _check_asked(text: str, asked: Sequence[str]) -> None:
    """Refuse an override of a run's recipe that says how it was trained."""
    key = text.partition("=")[0].strip()
    section = key.partition(".")[0]
    if section in asked or "=" not in text:
        return
    allowed = f"keys of {' and '.join(asked)}, such as generation.max_new_tokens=32"
    if section in Recipe.model_fields:
        fault = f"'{key}' says how the run was trained, and its adapter fits nothing else; allowed: {allowed}"
    else:
        fault = f"unknown key; allowed: {allowed}.{hint(section, asked)}".removesuffix(".")
    raise PeftkitError(f"override '{text if len(text) <= 80 else text[:77] + '...'}': {fault}.")


def attach_methods(base: Assembled, recipe: Recipe, name: str = "default", *, loading: bool = False) -> Assembled:
    """Attach a recipe's methods under `name` to a base, beside those of other runs; packed layers keep their source.

    They are as the recipe's `adapter` was left, where it has one.
    """
    methods = methods_of(recipe, base.tokenizer)
    children = load_children(base.module, recipe.adapter_folders, base.description)
    for method in methods if not loading else ():
        method.check_base(base.description)
    start = recipe.start_folder
    if start is not None:
        check_start(start, base.description, children)
    waits = loading or start is not None
    adaptation = attach(
        base.module, methods, name, recipe.train.seed, keep_base=False, loading=waits, children=children
    )
    if start is not None:
        go_on(adaptation, start, load=not loading)
    return replace(base, recipe=recipe, attached=adaptation)


def attach_adapter(base: Assembled, folder: Path, *, original: bool = False, headed: bool = False) -> Assembled:
    """Attach the trained adapter of a folder to its base; one that stands in its `original` weights fits any storage.

    Raises PeftkitError for an adapter of another base or storage, and a damaged one.
    """
    storage = None if original else base.storage
    described = describe_adapter(folder).get(OBJECTIVE) if headed else None
    objective = OBJECTIVES[described["name"]].from_options(described["options"]) if described else None
    module = None if objective is None else objective.build(Layout(base.module))
    modules = {} if module is None else {OBJECTIVE: module.to(base.device).eval()}
    adaptation = load_adapter(
        base.module,
        folder,
        base.fingerprint,
        quantization=storage,
        keep_base=False,
        modules=modules,
        adapters=base.recipe.adapter_folders,
    )
    forget_originals(base.module)
    base.model.eval()
    return replace(base, attached=adaptation, objective=objective)


def methods_of(recipe: Recipe, tokenizer: Any) -> list[Method]:
    """Build a recipe's methods for a model with this tokenizer."""
    return [method.with_tokenizer(tokenizer) for method in recipe.methods()]


def training_dtype(recipe: Recipe, precision: str, outline: nn.Module, *, own: bool) -> torch.dtype | None:
    """Return the halves in which frozen weights may be held, as they are computed; None leaves it to the recipe.

    They are not where the method trains weights of the model's `own`, which want their last bits, nor where some of the
    model's are packed: codes are found from the weights as other commands load them.
    """
    packed = any(packed_shape(module) is not None for module in outline.modules())
    lean = recipe.model.dtype == "auto" and not packed and not own
    return COMPUTED.get(precision) if lean else None


def _load_outline(
    recipe: Recipe, device: torch.device, quantization: QuantizationSection | None, dtype: torch.dtype | None = None
) -> LoadedModel:
    """Load the model without its weights, in `dtype` or that which it has on `device`."""
    # The meta device would get the checkpoint's own dtype, as a GPU does.
    if dtype is None and recipe.model.dtype == "auto" and device.type == "cpu":
        dtype = torch.float32
    outline = load(recipe.model, device="meta", dtype=dtype, weights=False, quantization=quantization)
    return described(outline, recipe)


def _shard(assembled: Assembled) -> Assembled:
    """Sharding: what each rank holds of the model and its adapters. One process holds all of it yet."""
    return assembled
