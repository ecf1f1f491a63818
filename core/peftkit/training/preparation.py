"""From a recipe to a loop that is ready to run: model, adapters, encoded data, batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftkit.adaptation import OBJECTIVE, Adaptation, load_module
from peftkit.assembly import Assembled, assemble, attach_methods
from peftkit.data.batches import Batches, Epoch
from peftkit.data.encode import Encoded, EncodedExamples
from peftkit.data.rows import EncodedRows, lengths_of
from peftkit.engine.engine import choose as choose_engine
from peftkit.engine.memory_plan import checkpoint_gradients
from peftkit.engine.passes import Phase
from peftkit.engine.rows import check_order
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import arrangement_of, objective_of
from peftkit.models.layerwise import release_memory
from peftkit.models.quantize import forget_originals
from peftkit.objectives import Objective
from peftkit.recipe import Recipe, TrainSection
from peftkit.tasks.source import load as load_data
from peftkit.training.encoded import Encoder, Working, options
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop
from peftkit.training.scoring import Slice, check, load_slice

VALIDATION_EXAMPLES = 256


@dataclass
class Prepared:
    """A run that is set up: the loop, what it stands on, and what became of the data."""

    loop: Loop
    loaded: Assembled
    adaptation: Adaptation
    template: Any
    dataset: str
    encoded: EncodedExamples
    batches: Batches
    """Of the training data."""
    digest: str
    """SHA-256 of the encoded training data: a resumed run must read the same."""
    validation: Batches | None
    scored: Slice | None
    """What is answered and scored while the run goes on."""
    notices: list[str]
    """What a person should know: examples dropped or cut, no validation split."""


def prepare(
    recipe: Recipe,
    *,
    resumed: bool = False,
    base: Assembled | None = None,
    name: str = "default",
    keep: Sequence[Path] = (),
    notice: Callable[[str], None] = lambda text: None,
    phase: Phase = lambda name: None,
    working: Working = lambda text: None,
) -> Prepared:
    """Assemble the model, read the data and build the loop; every fault is a PeftkitError.

    Of a `resumed` run the loop's saved state has to be loaded before anything else: it holds what the methods measured
    on the data before the first step, once. On a `base` that is there already the methods are
    attached under `name`, beside those of other runs, and packed weights keep what they were packed from. `keep` is
    as `assemble` takes it. `notice` and `phase` are the loop's; `working` receives how far the reading of data is.
    """
    section = recipe.train
    check(recipe)
    if base is None:
        loaded = assemble(recipe, loading=resumed, keep=keep)
    else:
        loaded = attach_methods(base, recipe, name, loading=resumed)
    adaptation, template = loaded.adaptation, loaded.template
    data, encoder = load_data(recipe.dataset, "train"), Encoder(recipe, template, loaded.tokenizer, working)
    encoded, objective, batches = encoder.train(data, objective_of(section, recipe.objective))
    add_module(adaptation, objective, section.seed, loaded.device, None if resumed else recipe.start_folder)
    check_length(loaded.model, encoded.rows, adaptation.moved())
    pad_id = loaded.tokenizer.pad_token_id
    went_on = [] if recipe.adapter is None else [f"the run goes on from the adapter in {recipe.adapter}."]
    notices = [*loaded.told, *went_on, *encoded.notices(section.max_length), *batches.notices(), *adaptation.notices()]
    measured = _validation_or_notice(encoder, data.name, objective, notices)
    # A trained adapter holds what its methods measured before their first step.
    if not resumed and recipe.adapter is None:
        torch.manual_seed(section.seed)
        adaptation.prepare(Epoch(batches, 0, pad_id))
    if base is None and not resumed:
        forget_originals(loaded.module)
    loop = _loop(loaded, batches, section, objective, notices, notice, phase)
    return Prepared(
        loop=loop,
        loaded=loaded,
        adaptation=adaptation,
        template=template,
        dataset=data.name,
        encoded=encoded,
        batches=batches,
        digest=digest(encoded.rows),
        validation=measured,
        scored=load_slice(recipe, data.name),
        notices=notices,
    )


def add_module(
    adaptation: Adaptation, objective: Objective, seed: int, device: torch.device, start: Path | None = None
) -> None:
    """Put what an objective trains beside the adapters, drawn from the run's seed or as it is beside those of `start`.

    Raises PeftkitError where those were trained for another objective.
    """
    torch.manual_seed(seed)
    module = objective.build(adaptation.layout)
    if start is not None:
        load_module(start, {"name": objective.name, "options": objective.options()}, module)
    if module is not None:
        adaptation.modules[OBJECTIVE] = module.to(device)


def _loop(
    loaded: Assembled,
    batches: Batches,
    section: TrainSection,
    objective: Objective,
    notices: list[str],
    notice: Callable[[str], None],
    phase: Phase,
) -> Loop:
    """Build the loop over what is ready; `notices` learns where the engine computes otherwise than it was asked to."""
    model, pad_id = loaded.model, loaded.tokenizer.pad_token_id
    if section.gradient_checkpointing:
        checkpoint_gradients(model)
    if objective.generates():
        check_order(loaded.module, batches.encoded, loaded.device)
    engine, differing = choose_engine(
        model, batches.encoded, pad_id, loaded.device, arrangement_of(section), loaded.adaptation.methods
    )
    notices += differing
    release_memory()
    torch.manual_seed(section.seed)
    return make_loop(
        engine,
        loaded.adaptation,
        batches,
        section,
        pad_id=pad_id,
        device=loaded.device,
        precision=loaded.precision,
        objective=objective,
        notice=notice,
        phase=phase,
    )


def validation(encoder: Encoder, dataset: str, objective: Objective) -> Batches | None:
    """Batch at most 256 examples spread evenly over the validation split of `dataset`; None if none is left of them."""
    recipe = encoder.recipe
    data = load_data(recipe.dataset.model_copy(update={"name": dataset}), "validation")
    rows = encoder.encode(data, "validation", objective, VALIDATION_EXAMPLES)[0].rows
    return Batches(rows, **options(recipe.train, objective)) if rows else None


def _validation_or_notice(encoder: Encoder, dataset: str, objective: Objective, notices: list[str]) -> Batches | None:
    """Batch the validation split; where it is not there and the recipe does not ask for it, that is a notice."""
    try:
        return validation(encoder, dataset, objective)
    except PeftkitError as error:
        if encoder.recipe.train.evaluate_every is not None:
            raise
        notices.append(f"the validation loss is left out: {error}")
        return None


def check_length(model: Any, encoded: Sequence[Encoded], moved: int = 0) -> None:
    """Refuse rows that are longer than the positions which the model has behind those that a prefix takes up."""
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    longest = int(lengths_of(encoded).max())
    if positions is not None and 0 < positions < longest + moved:
        prefix = f", of which the prefix takes {moved}" if moved else ""
        raise PeftkitError(
            f"the longest training example has {longest} tokens, and the model has positions for {positions}{prefix}: "
            f"set train.max_length to {positions - moved} or less."
        )


def digest(encoded: Sequence[Encoded]) -> str:
    """Return the SHA-256 of the token ids and labels in order, and of the rows' classes where they have one."""
    return EncodedRows.of(encoded).digest()
