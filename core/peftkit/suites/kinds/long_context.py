"""How a model does far into long texts: perplexity by position, and a number to be found in filler.

The number is the pass key of Mohtashami and Jaggi 2023 (arXiv:2305.16300), in words of our own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from peftkit.assembly import Assembled
from peftkit.data.encode import opening
from peftkit.data.long_texts import tokenize_long
from peftkit.device import autocast
from peftkit.errors import PeftkitError
from peftkit.files import read_text
from peftkit.recipe import Recipe
from peftkit.suites.suite import SUITES, Part, Score, Suite
from peftkit.tasks import source

WINDOWS, KEYS = 8, 4
"""Texts of the perplexity, and keys at each depth, where no limit says otherwise."""
SHORTEST, LONGEST = 64, 1 << 20
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the key stands: the share of the filler that is in front of it."""
FIRST_BUCKET = 128
"""Positions of the first two buckets; each later one ends at twice the position at which it begins."""
CHUNK = 1024
"""Positions whose logits are widened at once."""
INTRO = "A pass key is hidden in the notes below. Read all of them and remember it.\n\n"
FILLER = (
    "The path follows the river for a while. ",
    "A boat lies on the bank and nobody is in it. ",
    "Further on there is a field with a stone wall. ",
    "Some sheep look up and go on eating. ",
    "Then the path leaves the water and climbs. ",
)
NEEDLE = "The pass key is {key}. Do not forget it: {key} is the pass key. "
QUESTION = "\n\nThat was all. Which pass key was in the notes? The pass key is"
VERSION = 1


class LongContext(Suite):
    """`long-context:LENGTH,…`, in tokens; the text is that of the recipe's evaluation split, or files of one's own."""

    wanted: ClassVar[str] = (
        f"long-context or long-context:LENGTH,LENGTH,… is wanted, as long-context:512,2048: lengths in tokens from "
        f"{SHORTEST} to {LONGEST:,}, by default a quarter, half and all of the model's positions."
    )

    def open(self, names: Sequence[str], path: Path | None, recipe: Recipe) -> Mapping[str, Part]:
        wrong = next((name for name in names if not name.isdecimal() or not SHORTEST <= int(name) <= LONGEST), None)
        if wrong is not None:
            raise PeftkitError(f"--suite: '{wrong}' is no length, and {self.wanted}")
        lengths = sorted({int(name) for name in names})
        text = _own(path) if path is not None else _of_split(recipe)
        return {
            "perplexity": partial(perplexity, lengths, text, path),
            "passkey": partial(passkey, lengths),
        }


def _own(path: Path) -> str:
    """Return the text of a file, or of those in a folder that end in `.txt`, in the order of their names."""
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise PeftkitError(
            f"--suite-path is {path}, and no file in it ends in .txt: name a text, or a folder of texts."
        )
    return "\n\n".join(read_text(file) for file in files)


def _of_split(recipe: Recipe) -> str:
    examples = source.load(recipe.dataset, recipe.eval.split).examples
    return "\n\n".join(turn.text for example in examples for turn in example.turns)


def checked(lengths: Sequence[int], subject: Assembled) -> list[int]:
    """Return the lengths, or the default ones of a model.

    Raises PeftkitError for more positions than it has, and for a length in which no pass key has room.
    """
    config: Any = subject.model.config.get_text_config()
    longest, soft = getattr(config, "max_position_embeddings", None), len(subject.template.soft)
    wanted = list(lengths) or sorted({max(SHORTEST, ((longest or 0) - soft) // share) for share in (4, 2, 1)})
    if not lengths and not longest:
        raise PeftkitError(f"--suite: this {config.model_type} model names no longest text: {LongContext.wanted}")
    # Rotary positions go on beyond those that were trained, which is what is asked here.
    if longest and not getattr(config, "rope_parameters", None) and wanted[-1] + soft > longest:
        raise PeftkitError(
            f"--suite: {wanted[-1]} tokens{f' and {soft} soft ones' if soft else ''} are asked for, and this "
            f"{config.model_type} model has {longest} positions: name shorter lengths."
        )
    next(examples(subject.tokenizer, wanted[0], 0.0, 1))
    return wanted


def perplexity(
    lengths: Sequence[int], text: str, path: Path | None, subject: Assembled, limit: int | None
) -> list[Score]:
    """Score by buckets of positions, and over the beginning of each length; each window is one pass of the longest.

    A window follows the one before in the text. Raises PeftkitError for a text that has not one window.
    """
    lengths, first = checked(lengths, subject), opening(subject.tokenizer)
    ids = tokenize_long(text, subject.tokenizer)
    size = lengths[-1] - len(first)
    count = min(limit or WINDOWS, len(ids) // size)
    if not count:
        where = f"the text of {path}" if path is not None else "the evaluation split"
        raise PeftkitError(
            f"--suite: {where} has {len(ids):,} tokens, and {size:,} are wanted: name a longer text in "
            "--suite-path, or shorter lengths."
        )
    windows = ([*first, *ids[at * size : (at + 1) * size]] for at in range(count))
    surprise = torch.stack([_surprise(subject, window) for window in windows])
    edges = [0, FIRST_BUCKET]
    while edges[-1] < lengths[-1]:
        edges.append(2 * edges[-1])
    edges = [edge for edge in edges if edge < lengths[-1]] + [lengths[-1]]
    spans = [(f"positions {a}-{b - 1}", a, b) for a, b in pairwise(edges)]
    spans += [(f"first {length}", 0, length) for length in lengths]
    # The token at position p is predicted by those before it; the first one is predicted by nothing.
    return [
        _score("perplexity", name, _exp(surprise[:, max(0, a - 1) : b - 1].mean().item()), None, count)
        for name, a, b in spans
    ]


def _exp(nats: float) -> float | None:
    return math.exp(nats) if math.isfinite(nats) and nats < 700 else None


def _surprise(subject: Assembled, ids: Sequence[int]) -> Tensor:
    """Return -log p [T - 1] of each token but the first, fp64, behind the soft prompt where there is one."""
    logits, targets = _logits(subject, ids)[:-1], torch.tensor(ids[1:])
    parts = zip(logits.split(CHUNK), targets.to(logits.device).split(CHUNK), strict=True)
    return torch.cat([F.cross_entropy(x.float(), y, reduction="none").double().cpu() for x, y in parts])


def _logits(subject: Assembled, ids: Sequence[int]) -> Tensor:
    """Return the logits [T, vocabulary] at ids [T], whose soft prompt stands behind a beginning-of-sequence token."""
    soft, at = list(subject.template.soft), len(opening(subject.tokenizer))
    row = torch.tensor([[*ids[:at], *soft, *ids[at:]]], device=subject.device)
    with torch.no_grad(), autocast(subject.device, subject.precision):
        logits = subject.model(input_ids=row, use_cache=False).logits[0]
    return torch.cat([logits[:at], logits[at + len(soft) :]]) if at else logits[len(soft) :]


def passkey(lengths: Sequence[int], subject: Assembled, limit: int | None) -> list[Score]:
    """Score how often the greedy answer begins with the key, by length and depth."""
    count, scores = limit or KEYS, []
    for length in checked(lengths, subject):
        for depth in DEPTHS:
            found = [answers(subject, *example) for example in examples(subject.tokenizer, length, depth, count)]
            share = sum(found) / count
            error = math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None
            scores.append(_score(f"passkey-{length}", f"depth {depth:g}", share, error, count))
    return scores


def examples(tokenizer: Any, length: int, depth: float, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield prompts of at most `length` tokens with the key's own, and the key's tokens, the same each time.

    Raises PeftkitError for a length that the task itself does not fit into.
    """

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    filler = [ids(sentence) for sentence in FILLER]
    for number in range(count):
        key = str(random.Random(f"{length}/{depth}/{number}").randrange(10_000, 100_000))
        asked, told = ids(QUESTION), ids(f"{QUESTION} {key}")
        same = next((at for at, (a, b) in enumerate(zip(asked, told, strict=False)) if a != b), len(asked))
        begin, needle = [*opening(tokenizer), *ids(INTRO)], ids(NEEDLE.format(key=key))
        room, sentences = length - len(begin) - len(needle) - len(told), []
        if room < 0:
            raise PeftkitError(
                f"--suite: {length} tokens are asked for, and a pass key takes {length - room}: ask for more."
            )
        while room >= len(filler[len(sentences) % len(filler)]):
            sentences.append(filler[len(sentences) % len(filler)])
            room -= len(sentences[-1])
        at = round(depth * len(sentences))
        pieces = [begin, *sentences[:at], needle, *sentences[at:], told[:same]]
        yield [index for piece in pieces for index in piece], told[same:]


def answers(subject: Assembled, prompt: list[int], key: list[int]) -> bool:
    """Say whether the likeliest tokens behind a prompt are those of the key: one pass tells what each would be."""
    logits = _logits(subject, [*prompt, *key[:-1]])[len(prompt) - 1 :]
    return logits.argmax(-1).tolist() == key


def _score(task: str, metric: str, value: float | None, error: float | None, inputs: int) -> Score:
    about = {"shots": None, "inputs": inputs, "version": VERSION}
    return {"task": task, "metric": metric, "filter": "none", "value": value, "stderr": error, **about}


SUITES.add("long-context", LongContext())
