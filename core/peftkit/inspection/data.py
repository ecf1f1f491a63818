"""A recipe's examples as the model is given them, read with the tokenizer alone.

It tells the lengths of their rows, which repeat each other, and which were dropped or cut, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from peftkit.assembly import assemble
from peftkit.data.encode import EncodedExamples
from peftkit.data.example import LABEL, Example
from peftkit.data.rows import EncodedRows, lengths_of
from peftkit.data.stream import BLOCK
from peftkit.data.template import Template, choose
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import objective_of
from peftkit.inspection.tokens import TokenPiece, token_pieces
from peftkit.method import expand, keys_of
from peftkit.models.load import tokenizer_of
from peftkit.objectives import Objective
from peftkit.recipe import Recipe
from peftkit.tasks.source import Loaded
from peftkit.tasks.source import load as load_data
from peftkit.training.encoded import Encoder, Working

FIRST = 3
"""Places that are named of all that have something in common."""
UNLIMITED = 10**9
"""The largest `train.max_length`: with it nothing is cut."""
WITHOUT_SOFT_PROMPTS = {"linear", "hidden", "attention", "own parameters", "optimizer"}
"""Ports at which a method puts no rows of its own into the text; of other methods the model's outline tells."""


@dataclass(frozen=True)
class Seen:
    """One example as it is trained on."""

    number: int
    """Its number in the split as the recipe reads it, from 1."""
    id: str
    """Its file and line, as the data set names it."""
    rows: list[list[TokenPiece]]
    """A long document and some conversations have several; none where it is dropped."""
    label: str | None
    """Its class, where it has one."""
    fate: str | None
    """What was dropped or cut of it, and why."""


@dataclass(frozen=True)
class Fate:
    """What became of several examples, and why."""

    what: str
    count: int
    first: list[str]
    """The ids of the first of them, at most three."""


@dataclass(frozen=True)
class Look:
    """A split of a recipe's data set as the model sees it."""

    dataset: str
    """What was read: the task's name, with `bundled/` in front for the set in the package."""
    split: str
    template: str
    examples: int
    """Those that were dropped included."""
    lengths: np.ndarray
    """Tokens of each row, soft prompts included; [rows] int64."""
    trained: int
    """Tokens of all rows on which the loss falls."""
    max_length: int
    inputs: int
    """How many different prompts there are."""
    repeats: int
    """Examples that are the same, prompt and answer, as an earlier one."""
    repeated: list[tuple[str, str]]
    """The ids of the first of them, at most three, each with that of the earlier one."""
    fates: list[Fate]
    """What was dropped, cut or split, the most frequent first."""
    seen: list[Seen]
    notices: list[str] = field(default_factory=list)


def look(
    recipe: Recipe,
    split: str = "train",
    numbers: Sequence[int] | None = None,
    working: Working = lambda text: None,
) -> Look:
    """Encode a split (`train`, `validation` or `test`) of a recipe's data set as training does, and look at it.

    `numbers` are those of the examples to show, from 1; the first three by default. `working` receives how far the
    encoding is. Of streamed data it is the first 1,024 examples. No weights are read, and no model is built unless the
    methods may put a soft prompt in front of the text. Raises PeftkitError for every fault of the recipe or the files,
    and a number that no example has.
    """
    tokenizer, template = _text_side(recipe)
    data, notices = load_data(recipe.dataset, split), []
    if data.name != recipe.dataset.name:
        notices.append(f"{data.name} is read ({data.origin})")
    if recipe.dataset.streaming:
        # A pipe is read once.
        data = replace(data, examples=data.examples[:BLOCK], paths=None)
        notices.append(f"the data are streamed: these are the first {len(data.examples):,} examples")
    encoder = Encoder(recipe, template, tokenizer, working)
    encoded, objective = encoder.encode(data, split, _settled(recipe, split))
    places = _Places.of(encoded)
    fates = _fates(encoder, data, split, objective, places)
    wanted = _wanted(numbers, places.count, split)
    passed = _Passed.over(data.examples, {*fates, *wanted})
    rows, limit = EncodedRows.of(encoded.rows), recipe.train.max_length
    return Look(
        dataset=data.name,
        split=split,
        template=template.name,
        examples=places.count,
        lengths=lengths_of(rows),
        trained=sum(int(block.trained.sum()) for block in rows.blocks),
        max_length=limit,
        inputs=passed.inputs,
        repeats=passed.repeats,
        repeated=passed.repeated,
        fates=_gathered(fates, passed.ids),
        seen=[
            Seen(
                number=at + 1,
                id=passed.ids[at],
                rows=[token_pieces(row, tokenizer, template.soft) for row in places.rows(at)],
                label=passed.labels.get(at),
                fate=fates.get(at),
            )
            for at in wanted
        ],
        notices=notices + (encoded.notices(limit)[:1] if encoded.special else []),
    )


def _text_side(recipe: Recipe) -> tuple[Any, Template]:
    """Return the tokenizer and the template, with the ids of soft prompts where the methods have some."""
    ports = {name for method in expand(recipe.methods()) for name in method.port.split(" + ")}
    if ports <= WITHOUT_SOFT_PROMPTS:
        tokenizer = tokenizer_of(recipe.model)
        template = choose(recipe.dataset.template, tokenizer, recipe.dataset.special)
        return tokenizer, template.with_keys(keys_of(recipe.methods()))
    outline = assemble(recipe, weights=False)
    return outline.tokenizer, outline.template


def _settled(recipe: Recipe, split: str) -> Objective:
    """Return the objective with what it takes from the training examples, whatever split is looked at."""
    objective = objective_of(recipe.train, recipe.objective)
    if split == "train" or type(objective).settle is Objective.settle:
        return objective
    return objective.settle(load_data(recipe.dataset, "train").examples)


def _wanted(numbers: Sequence[int] | None, count: int, split: str) -> list[int]:
    """Return the positions of the examples to show."""
    if numbers is None:
        return list(range(min(FIRST, count)))
    wrong = next((number for number in numbers if not 1 <= number <= count), None)
    if wrong is not None:
        raise PeftkitError(f"rows: found {wrong}; allowed: 1 to {count}, the examples of the split '{split}'.")
    return [number - 1 for number in numbers]


@dataclass(frozen=True)
class _Places:
    """Encoded rows by the positions of their examples."""

    encoded: EncodedExamples
    count: int
    """Of all examples, those without a row included."""
    begins: np.ndarray
    """[count + 1] int64: rows `begins[at]` up to `begins[at + 1]` are those of the example at `at`."""

    @classmethod
    def of(cls, encoded: EncodedExamples) -> _Places:
        count = encoded.examples + encoded.dropped
        rows = np.bincount(np.asarray(encoded.sources, np.int64), minlength=count)
        return cls(encoded, count, np.concatenate([[0], np.cumsum(rows)]))

    def rows(self, at: int) -> list[Any]:
        return list(self.encoded.rows[int(self.begins[at]) : int(self.begins[at + 1])])

    @property
    def per_example(self) -> np.ndarray:
        return np.diff(self.begins)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of all rows of each example, [count] int64."""
        ends = np.concatenate([[0], np.cumsum(lengths_of(self.encoded.rows))])
        return np.diff(ends[self.begins])


def _fates(encoder: Encoder, data: Loaded, split: str, objective: Objective, fitted: _Places) -> dict[int, str]:
    """Return what was dropped, cut or split, and why, by the example's position; the set is encoded uncut for it."""
    cost = fitted.encoded
    if not (cost.dropped or cost.prompts_cut or cost.targets_cut or len(cost.rows) > cost.examples):
        return {}
    train = encoder.recipe.train.model_copy(update={"max_length": UNLIMITED})
    uncut = replace(encoder, recipe=encoder.recipe.model_copy(update={"train": train}))
    whole = _Places.of(uncut.encode(data, split, objective)[0])
    changed = (whole.per_example != fitted.per_example) | (whole.tokens != fitted.tokens) | (whole.per_example == 0)
    limit = f"train.max_length {encoder.recipe.train.max_length}"
    return {at: _fate(whole.rows(at), fitted.rows(at), limit) for at in np.flatnonzero(changed).tolist()}


def _fate(whole: Sequence[Any], fitted: Sequence[Any], limit: str) -> str:
    """Say what became of an example, from its rows without and with the limit."""
    if not whole:
        return "dropped: there is nothing in it to train on, as where an answer is empty"
    if not fitted:
        return f"dropped: {limit} leaves no room for a token to train on"
    if len(fitted) > len(whole):
        return f"split: a document of more than {limit} became several rows"
    if len(fitted) < len(whole):
        return f"cut: answers for which {limit} leaves no room were left out"
    if sum(row.trained for row in fitted) < sum(row.trained for row in whole):
        return f"cut: the answer lost its end, as it is longer than {limit} leaves room for"
    return f"cut: the prompt lost its beginning, as with its answer it is longer than {limit}"


def _gathered(fates: dict[int, str], ids: dict[int, str]) -> list[Fate]:
    places: dict[str, list[int]] = {}
    for at, what in fates.items():
        places.setdefault(what, []).append(at)
    gathered = [Fate(what, len(found), [ids[at] for at in found[:FIRST]]) for what, found in places.items()]
    return sorted(gathered, key=lambda fate: -fate.count)


@dataclass
class _Passed:
    """What one pass over the examples tells: names of some, and what repeats."""

    ids: dict[int, str] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    inputs: int = 0
    repeats: int = 0
    repeated: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def over(cls, examples: Sequence[Example], named: set[int]) -> _Passed:
        """Go over the examples once, and keep the names of those at the positions `named`."""
        passed, inputs = cls(), set()
        earlier: dict[bytes, int] = {}
        for at, (example, prompt, whole) in enumerate(_marked(examples)):
            inputs.add(prompt)
            first = earlier.setdefault(whole, at)
            passed.repeats += first != at
            if first != at and len(passed.repeated) < FIRST:
                passed.repeated.append((example.id, examples[first].id))
            if at in named:
                passed.ids[at] = example.id
                if LABEL in example.meta:
                    passed.labels[at] = str(example.meta[LABEL])
        passed.inputs = len(inputs)
        return passed


def _marked(examples: Sequence[Example]) -> Iterator[tuple[Example, bytes, bytes]]:
    """Yield each example with a mark of its prompt and one of all of it, in the place of texts."""
    for example in examples:
        yield example, _mark(example.prompt), _mark((example.turns, example.meta.get(LABEL)))


def _mark(value: object) -> bytes:
    return hashlib.blake2b(repr(value).encode("utf-8", "surrogatepass"), digest_size=16).digest()
