"""Evaluating a run, its base model, or the untrained model of a recipe, and the report of it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from peftkit import files, lock
from peftkit.adaptation import Adaptation
from peftkit.assembly import Assembled, assemble, read_run
from peftkit.data import special
from peftkit.data.example import Example, Turn
from peftkit.device import autocast
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import objective_of
from peftkit.evaluation.answers import Evaluation, check_examples, evaluate_loaded, settings_for
from peftkit.evaluation.heads import predict
from peftkit.generation import generate
from peftkit.generation.decoding import OnProgress
from peftkit.generation.journal import Journal
from peftkit.recipe import Recipe
from peftkit.tasks import TASKS, Task, source
from peftkit.versions import versions

OTHERWISE = "evaluate its base model instead"
BUSY = "NAME in {} is being evaluated: {} answers it. Wait for its end or stop it, and begin again."


def evaluate(
    target: Path | Recipe,
    overrides: Sequence[str] = (),
    *,
    split: str | None = None,
    limit: int | None = None,
    base: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Score a run, its base model (`base`), or the untrained model of a recipe, and return the report.

    `split` and `limit` replace the recipe's, and so do `overrides`, `key=value` texts of a run's sections `eval` and
    `generation`. The report and the predictions are written to `eval/` in the run folder, or in a recipe's `output`
    where it names one; those of a bare base have `-base` in their name. `on_progress` receives (answers so far, all).
    An evaluation that was interrupted goes on from the answers that it had written, to `….partial.jsonl`, and ends
    with the same predictions. Raises PeftkitError for a run without an adapter, a split that is not there and a limit
    below 1.
    """
    recipe, folder, adapter = places(target, base, overrides)
    split, limit = split or recipe.eval.split, recipe.eval.limit if limit is None else limit
    if limit is not None and limit < 1:
        raise PeftkitError(f"the limit is {limit}, and at least one example is evaluated.")
    if not (objective := objective_of(recipe.train, recipe.objective)).generates():
        if adapter is None or folder is None:
            raise PeftkitError(
                f"the objective '{objective.name}' predicts by a layer that is trained with the adapter, and an "
                "untrained model has none: name a run, without --base."
            )
        with _alone(folder, f"{recipe.dataset.name.replace('/', '-')}-{split}"):
            result, predictions = predict(recipe, folder, split, limit, on_progress)
            _write(folder / "eval", f"{result['dataset'].replace('/', '-')}-{split}", predictions, result)
        return result
    data = source.load(recipe.dataset, split, grouped=True, limit=limit)
    examples = data.examples
    check_examples(data.task, examples, data.name)
    name = f"{data.name.replace('/', '-')}-{split}{'' if adapter else '-base'}"
    facts = {"dataset": data.name, "origin": data.origin, "split": split, "limit": limit, "examples": len(examples)}
    with _alone(folder, name):
        subject = prepare(recipe, adapter)
        _tell_special(examples, subject)
        return _evaluate(subject, data.task, examples, facts, (folder, name, adapter), on_progress)


def _evaluate(
    subject: Assembled,
    task: Task,
    examples: Sequence[Example],
    facts: dict[str, Any],
    places: tuple[Path | None, str, Path | None],
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """Answer and score; `places` are the folder that is written to, the name there, and the adapter's folder."""
    recipe, (folder, name, adapter) = subject.recipe, places
    journal = None
    if folder is not None:
        key = journal_key(subject, recipe, examples, adapter)
        journal = Journal(folder / "eval" / f"{name}.partial.jsonl", key)
    with autocast(subject.device, subject.precision):
        evaluation = evaluate_loaded(
            subject.model,
            subject.tokenizer,
            task,
            examples,
            subject.template,
            generation=recipe.generation,
            batch_size=recipe.eval.batch_size,
            history=recipe.eval.history,
            official=recipe.eval.official,
            journal=journal,
            on_progress=on_progress,
        )
    result = report(subject, evaluation, facts)
    warn(evaluation, len(examples))
    if folder is not None and journal is not None:
        _write(folder / "eval", name, evaluation.predictions, result)
        journal.remove()
    return result


@contextmanager
def _alone(folder: Path | None, name: str) -> Iterator[None]:
    """Have one process at a time evaluate into a name in a run folder."""
    if folder is None:
        yield
        return
    place, log = folder / "eval", logging.getLogger("peftkit")
    with lock.held(place, log.warning, f".{name}.lock", BUSY.replace("NAME", name)):
        yield


def _write(folder: Path, name: str, predictions: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in predictions]
    files.write_text(folder / f"{name}.predictions.jsonl", "".join(lines))
    files.write_json(folder / f"{name}.json", result)


def places(target: Path | Recipe, base: bool, overrides: Sequence[str] = ()) -> tuple[Recipe, Path | None, Path | None]:
    """Return the recipe of what is scored, the folder that is written to, and that of the adapter; none of a base.

    `overrides` are those of a run's recipe.
    """
    if isinstance(target, Recipe):
        return target, Path(target.output) if target.output else None, None
    recipe = read_run(target, overrides, adapter=not base, otherwise=OTHERWISE)
    return recipe, target, None if base else target / "adapter"


def prepare(recipe: Recipe, adapter: Path | None) -> Assembled:
    """Assemble the recipe's model to answer, with the adapter of a folder where one is given, merged where exact."""
    subject = assemble(recipe, adapter, bare=adapter is None)
    if subject.attached is not None and merges_exactly(subject.attached):
        subject.attached.merge_(keep_base=False)
    return subject


def merges_exactly(adaptation: Adaptation) -> bool:
    """Say whether the adapters could go into the weights with no more than fp32's rounding, which is faster.

    So it is where every method can be merged and every weight beneath an adapter is held in fp32, unpacked.
    """
    sites = [adapter.site.module for adapter in adaptation.lasting()]
    frozen = [module._parameters.get("weight") for module in sites]
    return adaptation.unmergeable() is None and all(
        weight is not None and weight.dtype == torch.float32 for weight in frozen
    )


def answer(
    run: Path,
    text: str,
    overrides: Sequence[str] = (),
    *,
    system: str | None = None,
    key: str | None = None,
    base: bool = False,
) -> str:
    """Answer one prompt; see `answers`."""
    return answers(run, [text], overrides, system=system, key=key, base=base)[0]


def answers(
    run: Path,
    texts: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    system: str | None = None,
    key: str | None = None,
    base: bool = False,
) -> list[str]:
    """Answer prompts with a run's adapted model, or with its base, under the run's template.

    `overrides` are `key=value` of the run's `eval` and `generation`; `system` is the text of a system turn in front,
    `key` chooses the adapters of a run that has several sets of them.
    Raises PeftkitError where the template knows no such turn and the recipe does not fold it into the prompt.
    """
    recipe = read_run(run, overrides, adapter=not base, otherwise=OTHERWISE)
    subject = prepare(recipe, None if base else run / "adapter")
    model, tokenizer = subject.model, subject.tokenizer
    task = TASKS[recipe.dataset.name.removeprefix(source.PREFIX)]
    settings = settings_for(model, tokenizer, task, subject.template, recipe.generation)
    examples = [asked(text, system, subject, key) for text in texts]
    prompts = [subject.template.prompt_ids(example, tokenizer) for example in examples]
    _tell_special(examples, subject)
    with autocast(subject.device, subject.precision):
        return [generated.text.strip() for generated in generate(model, tokenizer, prompts, settings)]


def asked(text: str, system: str | None, subject: Assembled, key: str | None = None) -> Example:
    """Return the example of a prompt, behind a `system` turn or with that text folded into it, with its key."""
    keys = subject.template.keys
    if key is not None and keys is None:
        raise PeftkitError(f"the key '{key}' is given, and this model has no adapters that are chosen by one.")
    if key is None and keys is not None:
        raise PeftkitError(
            "the adapters of this run are chosen by a key: give one with the prompt (`peft generate RUN PROMPT --key "
            f"{keys.names[0]}`). Allowed: {', '.join(keys.names)}."
        )
    example = Example("the prompt", (Turn("user", text),), meta={} if keys is None else {keys.field: key})
    if system is None:
        return example
    with_system = replace(example, turns=(Turn("system", system), *example.turns))
    if subject.recipe.dataset.system == source.FOLD:
        return replace(example, turns=source.folded(with_system))
    if not subject.template.takes_system(subject.tokenizer):
        raise PeftkitError(
            f"a system text is given, and the template '{subject.template.name}' of this model knows no system turn: "
            f"leave it out, or train with `dataset.system: {source.FOLD}`, which puts it in front of the prompt."
        )
    return with_system


def _tell_special(examples: Sequence[Example], subject: Assembled) -> None:
    for told in special.notices(examples, subject.recipe.dataset.special, subject.tokenizer):
        logging.getLogger("peftkit").warning(told)


def journal_key(subject: Assembled, recipe: Recipe, examples: Sequence[Example], adapter: Path | None) -> str:
    """Return a digest of everything that the answers depend on."""
    facts = [recipe.to_yaml(), subject.fingerprint, subject.device.type, subject.precision, versions()]
    digest = hashlib.sha256(repr([*facts, torch.get_num_threads()]).encode())
    for example in examples:
        digest.update(repr((example.id, example.turns, dict(example.meta))).encode())
    for path in sorted(adapter.iterdir()) if adapter else ():
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def report(subject: Assembled, evaluation: Evaluation, facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the scores depend on, with the scores in front."""
    recipe = subject.recipe
    return {
        "scores": evaluation.scores,
        "unavailable": evaluation.scores.unavailable,
        "treebank_tokens": evaluation.treebank_tokens,
        **facts,
        "unfinished": evaluation.unfinished,
        "shortened_prompts": evaluation.shortened,
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "adapter": subject.methods,
        "template": subject.template.name,
        "generation": json.loads(json.dumps(asdict(evaluation.settings))),
        "batch_size": recipe.eval.batch_size,
        "history": recipe.eval.history,
        "device": subject.device.type,
        "precision": subject.precision,
        "generated_tokens": evaluation.tokens,
        "wall_s": round(evaluation.wall_s, 3),
        "tokens_per_second": round(evaluation.tokens / evaluation.wall_s, 1) if evaluation.wall_s else 0.0,
        "versions": versions(),
    }


def warn(evaluation: Evaluation, examples: int) -> None:
    """Warn of what makes scores lower than they might be."""
    log = logging.getLogger("peftkit")
    if evaluation.unfinished:
        text = "%d of %d answers were cut off at %d tokens (generation.max_new_tokens) and scored as they are."
        log.warning(text, evaluation.unfinished, examples, evaluation.settings.max_new_tokens)
    if evaluation.shortened:
        text = "%d of %d prompts lost their beginning: they are longer than the model's context."
        log.warning(text, evaluation.shortened, examples)
