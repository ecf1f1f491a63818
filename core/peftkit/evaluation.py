"""Generating for every input of a split and scoring it: a run, its base model, or any loaded model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftkit import files
from peftkit.adaptation import DESCRIPTION, load_adapter
from peftkit.data import source
from peftkit.data.example import Example, Turn
from peftkit.data.template import Template, choose
from peftkit.engine.device import autocast, choose_device, choose_precision
from peftkit.errors import PeftkitError
from peftkit.generation import Settings, generate
from peftkit.generation.asking import Asked, History
from peftkit.generation.journal import Journal
from peftkit.generation.stopping import own_ends
from peftkit.models.load import load as load_model
from peftkit.models.quantize import forget_originals
from peftkit.recipe import GenerationSection, Recipe
from peftkit.recipe import load as load_recipe
from peftkit.tasks import TASKS, Task
from peftkit.versions import versions

if TYPE_CHECKING:
    from peftkit.adaptation import Adaptation
    from peftkit.metrics import Scores
    from peftkit.models.load import LoadedModel

OnProgress = Callable[[int, int], None]


@dataclass
class Subject:
    """A model that is ready to answer, and what it was made of."""

    recipe: Recipe
    loaded: LoadedModel
    template: Template
    methods: list[dict[str, Any]] | None
    """Names and options of what is attached; None for the bare base."""
    device: torch.device
    precision: str


@dataclass(frozen=True)
class Evaluation:
    """Answers and scores of a set of examples."""

    scores: Scores
    predictions: list[dict[str, Any]]
    """One record an example: id, prompt, prediction, references, finished."""
    settings: Settings
    unfinished: int
    """Answers that the limit of new tokens cut off."""
    shortened: int
    """Prompts of which only the end fits into the model's context."""
    tokens: int
    """Generated tokens."""
    wall_s: float
    """Seconds for generating."""


def evaluate(
    target: Path | Recipe,
    *,
    split: str | None = None,
    limit: int | None = None,
    base: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Score a run, its base model (`base`), or the untrained model of a recipe, and return the report.

    `split` and `limit` replace the recipe's. The report and the predictions are written to `eval/` in the run folder,
    or in a recipe's `output` where it names one; those of a bare base have `-base` in their name. `on_progress`
    receives (answers so far, all). An evaluation that was interrupted goes on from the answers that it had written, to
    `….partial.jsonl`, and ends with the same predictions. Raises PeftkitError for a run without an adapter, a split
    that is not there and a limit below 1.
    """
    bare = base or isinstance(target, Recipe)
    recipe = target if isinstance(target, Recipe) else read_recipe(target, adapter=not bare)
    split, limit = split or recipe.eval.split, recipe.eval.limit if limit is None else limit
    if limit is not None and limit < 1:
        raise PeftkitError(f"the limit is {limit}, and at least one example is evaluated.")
    data = source.load(recipe.dataset, split, grouped=True)
    examples = data.examples[:limit]
    check_examples(data.task, examples, data.name)
    folder = target if isinstance(target, Path) else Path(recipe.output) if recipe.output else None
    subject = prepare(recipe, None if bare or folder is None else folder / "adapter")
    name = f"{data.name.replace('/', '-')}-{split}{'-base' if bare else ''}"
    journal = None
    if folder is not None:
        key = journal_key(subject, recipe, examples, None if bare else folder / "adapter")
        journal = Journal(folder / "eval" / f"{name}.partial.jsonl", key)
    with autocast(subject.device, subject.precision):
        found = evaluate_loaded(
            subject.loaded.model,
            subject.loaded.tokenizer,
            data.task,
            examples,
            subject.template,
            generation=recipe.generation,
            batch_size=recipe.eval.batch_size,
            history=recipe.eval.history,
            journal=journal,
            on_progress=on_progress,
        )
    facts = {"dataset": data.name, "origin": data.origin, "split": split, "limit": limit, "examples": len(examples)}
    result = report(subject, found, facts)
    tell(found, len(examples))
    if folder is not None and journal is not None:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in found.predictions]
        files.write_text(folder / "eval" / f"{name}.predictions.jsonl", "".join(lines))
        files.write_json(folder / "eval" / f"{name}.json", result)
        journal.remove()
    return result


def evaluate_loaded(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    template: Template,
    *,
    generation: GenerationSection | None = None,
    batch_size: int = 32,
    history: History = "gold",
    journal: Journal | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Answer grouped `examples` with a model as it stands and score the answers by the task's metrics.

    `history` says which earlier answers a conversation's prompts hold. What `journal` holds of an interrupted
    evaluation is not generated again.
    """
    check_examples(task, examples, task.name)
    settings = settings_for(model, tokenizer, task, template, generation or GenerationSection())
    asked = Asked(model, tokenizer, task, examples, template, settings, history)
    answers = asked.answer(batch_size, journal, on_progress)
    texts = [answer.text.strip() for answer in answers]
    return Evaluation(
        scores=task.score(examples, texts),
        predictions=records(asked, texts),
        settings=settings,
        unfinished=sum(not answer.finished for answer in answers),
        shortened=len(asked.shortened),
        tokens=sum(len(answer.ids) for answer in answers),
        wall_s=asked.wall_s,
    )


def records(asked: Asked, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return what is written of each prediction, in the order of the examples."""
    found: dict[int, dict[str, Any]] = {}
    for conversation in asked.conversations:
        for turn, index in enumerate(conversation):
            example, answer = asked.posed(conversation, turn), asked.answers[index]
            found[index] = {
                "id": example.id,
                "prompt": example.prompt[-1].text if example.prompt else "",
                "prediction": texts[index],
                "references": list(example.references),
                "finished": answer is not None and answer.finished,
            }
    return [found[index] for index in range(len(texts))]


def answer(run: Path, text: str, *, base: bool = False) -> str:
    """Answer one prompt with a run's adapted model, or with its base, under the run's template."""
    recipe = read_recipe(run, adapter=not base)
    subject = prepare(recipe, None if base else run / "adapter")
    model, tokenizer = subject.loaded.model, subject.loaded.tokenizer
    task = TASKS[recipe.dataset.name.removeprefix(source.PREFIX)]
    settings = settings_for(model, tokenizer, task, subject.template, recipe.generation)
    prompt = subject.template.prompt_ids(Example("prompt", (Turn("user", text),)), tokenizer)
    with autocast(subject.device, subject.precision):
        (found,) = generate(model, tokenizer, [prompt], settings)
    return found.text.strip()


def read_recipe(run: Path, *, adapter: bool) -> Recipe:
    """Read the recipe of a run folder; with `adapter`, a run without one is refused."""
    if not (run / "recipe.yaml").is_file():
        raise PeftkitError(f"{run} is not a run folder: there is no recipe.yaml in it. Name one that training wrote.")
    if adapter and not (run / "adapter" / DESCRIPTION).is_file():
        raise PeftkitError(
            f"the run {run} has no adapter: its training has not ended. Resume it, or evaluate its base model instead."
        )
    return load_recipe(run / "recipe.yaml")


def prepare(recipe: Recipe, adapter: Path | None) -> Subject:
    """Load the recipe's model, with the adapter of a folder attached where one is given."""
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device)
    loaded = load_model(recipe.model, device=str(device), quantization=recipe.quantization)
    template = choose(recipe.dataset.template, loaded.tokenizer)
    if adapter is None:
        return Subject(recipe, loaded, template, None, device, precision)
    adaptation = load_adapter(loaded.model, adapter, loaded.fingerprint, quantization=loaded.storage, keep_base=False)
    forget_originals(loaded.model)
    loaded.model.eval()
    if merges_exactly(adaptation):
        adaptation.merge_(keep_base=False)
    methods = [{"name": method.name, "options": method.options()} for method in adaptation.described]
    return Subject(recipe, loaded, template.with_soft(adaptation.soft_ids), methods, device, precision)


def merges_exactly(adaptation: Adaptation) -> bool:
    """Say whether the adapters could go into the weights with no more than fp32's rounding, which is faster.

    So it is where every method can be merged and every weight beneath an adapter is held in fp32, unpacked.
    """
    sites = [adapter.site.module for part in adaptation.parts for adapter in part.adapters.values()]
    frozen = [module._parameters.get("weight") for module in sites]
    return all(part.method.mergeable for part in adaptation.parts) and all(
        weight is not None and weight.dtype == torch.float32 for weight in frozen
    )


def settings_for(model: Any, tokenizer: Any, task: Task, template: Template, section: GenerationSection) -> Settings:
    """Combine what the recipe, the task, the template and the model say about generating."""
    return Settings(
        max_new_tokens=section.max_new_tokens or task.max_new_tokens,
        do_sample=section.do_sample,
        temperature=section.temperature,
        top_p=section.top_p,
        top_k=section.top_k,
        num_beams=section.num_beams,
        length_penalty=section.length_penalty,
        early_stopping=section.early_stopping,
        no_repeat_ngram_size=section.no_repeat_ngram_size,
        no_repeat_ngram_prompt=section.no_repeat_ngram_prompt,
        seed=section.seed,
        stop=tuple(dict.fromkeys((*task.stop, *section.stop))),
        ends=tuple(dict.fromkeys((*template.stop_ids(tokenizer), *own_ends(model, tokenizer)))),
    )


def journal_key(subject: Subject, recipe: Recipe, examples: Sequence[Example], adapter: Path | None) -> str:
    """Return a digest of everything that the answers depend on."""
    facts = [recipe.to_yaml(), subject.loaded.fingerprint, subject.device.type, subject.precision, versions()]
    digest = hashlib.sha256(repr([*facts, torch.get_num_threads()]).encode())
    for example in examples:
        digest.update(repr((example.id, example.turns)).encode())
    for path in sorted(adapter.iterdir()) if adapter else ():
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def check_examples(task: Task, examples: Sequence[Example], dataset: str) -> None:
    """Raise PeftkitError, before any text is generated, where there would be nothing to score it by."""
    if not task.metrics:
        raise PeftkitError(f"the data set {dataset} has no metrics: its texts have no right answers to compare with.")
    bare = next((example.id for example in examples if not any(example.references)), None)
    if bare is not None:
        raise PeftkitError(f"{dataset}: the example {bare} has no reference, so its answer cannot be scored.")


def report(subject: Subject, found: Evaluation, facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the scores depend on, with the scores in front."""
    recipe = subject.recipe
    return {
        "scores": found.scores,
        "unavailable": found.scores.unavailable,
        **facts,
        "unfinished": found.unfinished,
        "shortened_prompts": found.shortened,
        "model": subject.loaded.name,
        "fingerprint": subject.loaded.fingerprint,
        "adapter": subject.methods,
        "template": subject.template.name,
        "generation": json.loads(json.dumps(asdict(found.settings))),
        "batch_size": recipe.eval.batch_size,
        "history": recipe.eval.history,
        "device": subject.device.type,
        "precision": subject.precision,
        "generated_tokens": found.tokens,
        "wall_s": round(found.wall_s, 3),
        "tokens_per_second": round(found.tokens / found.wall_s, 1) if found.wall_s else 0.0,
        "versions": versions(),
    }


def tell(found: Evaluation, examples: int) -> None:
    """Warn of what makes scores lower than they might be."""
    log = logging.getLogger("peftkit")
    if found.unfinished:
        text = "%d of %d answers were cut off at %d tokens (generation.max_new_tokens) and scored as they are."
        log.warning(text, found.unfinished, examples, found.settings.max_new_tokens)
    if found.shortened:
        text = "%d of %d prompts lost their beginning: they are longer than the model's context."
        log.warning(text, found.shortened, examples)
