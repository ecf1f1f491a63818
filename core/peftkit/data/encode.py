"""From rendered pieces of text to token ids and label masks, within a length, whole data sets at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.data import borders, special
from peftkit.data.encoded import IGNORED, Encoded, EncodedExamples
from peftkit.data.example import LABEL, Example, Turn
from peftkit.data.long_texts import LONG, shorten, tokenize_long
from peftkit.errors import PeftkitError
from peftkit.keys import marked

if TYPE_CHECKING:
    from peftkit.data.template import Rendering, Template


class Piece(NamedTuple):
    """A run of text that is trained on as a whole or not at all."""

    text: str
    trained: bool
    ends: bool = False
    """Whether the end-of-sequence token follows, trained as the text is."""


def join(pieces: Sequence[Piece]) -> list[Piece]:
    """Join neighbouring untrained pieces, so that a prompt is tokenized as one text."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and not piece.trained and not joined[-1].trained and not joined[-1].ends:
            piece = Piece(joined.pop().text + piece.text, trained=False, ends=piece.ends)
        joined.append(piece)
    return joined


def opening(tokenizer: Any) -> list[int]:
    """Return the beginning-of-sequence id in a list where the tokenizer itself puts one in front, else nothing."""
    first = tokenizer.bos_token_id
    return [first] if first is not None and _puts(first, tokenizer) else []


@lru_cache(maxsize=64)
def _puts(first: int, tokenizer: Any) -> bool:
    return tokenizer("a")["input_ids"][:1] == [first]


def closing(tokenizer: Any) -> int:
    """Return the end-of-sequence id; a tokenizer without one is a PeftkitError."""
    if tokenizer.eos_token_id is None:
        raise PeftkitError(
            "the tokenizer has no end-of-sequence token, and targets end with it. "
            "Name another tokenizer in `model.tokenizer`."
        )
    return tokenizer.eos_token_id


def tokenize(texts: Iterable[str], tokenizer: Any) -> dict[str, list[int]]:
    """Return the ids of each distinct text, without special tokens around it."""
    distinct = dict.fromkeys(texts)
    long = {text: tokenize_long(text, tokenizer) for text in distinct if len(text) > LONG}
    short = [text for text in distinct if text not in long]
    return long | dict(zip(short, special.tokenized(short, tokenizer), strict=True))


def _prefixes(pieces: Sequence[Piece], splits: bool) -> list[tuple[str, bool]]:
    """Return for each piece the text up to and with it, and whether that begins with the piece.

    It goes back to the last end-of-sequence, or where the tokenizer `splits` at borders, to the last one of them.
    """
    splits = splits and not any(special.MARK in piece.text for piece in pieces)
    texts, running = [], ""
    for piece in pieces:
        begins = not running or (splits and borders.between(running, piece.text))
        running = piece.text if begins else running + piece.text
        texts.append((running, begins))
        if piece.ends:
            running = ""
    return texts


def tokenize_pieces(rows: Sequence[Sequence[Piece]], tokenizer: Any) -> list[list[tuple[list[int], bool]]]:
    """Return for each row its runs of (ids, trained).

    A run is tokenized in the context of what precedes it as long as that leaves the ids before it as they are, which
    is what generation from the prompt alone will see; where the tokenizer would merge over the border, the run is
    tokenized alone, and those after it are.
    """
    splits = borders.known(tokenizer)
    prefixes = [_prefixes(pieces, splits) for pieces in rows]
    end = closing(tokenizer) if any(piece.ends for pieces in rows for piece in pieces) else None
    table = tokenize((text for texts in prefixes for text, _ in texts), tokenizer)
    split = []
    for pieces, texts in zip(rows, prefixes, strict=True):
        runs: list[tuple[list[int], bool]] = []
        before: list[int] = []
        merged = alone = False
        for piece, (text, begins) in zip(pieces, texts, strict=True):
            if begins:
                before, alone = [], merged
            ids = table[text]
            if not alone and ids[: len(before)] == before:
                ids = ids[len(before) :]
            else:
                merged = True
                (ids,) = special.tokenized([piece.text], tokenizer)
            before, merged = ([], False) if piece.ends else (before + ids, merged)
            runs.append((ids + [end] if end is not None and piece.ends else ids, piece.trained))
        split.append(runs)
    return split


def flatten(start: list[int], runs: Sequence[tuple[list[int], bool]]) -> Encoded:
    """Join runs into one row after the untrained `start`; what follows the last trained token is left out."""
    ids, labels = list(start), [IGNORED] * len(start)
    end = 0
    for run, trained in runs:
        ids += run
        labels += run if trained else [IGNORED] * len(run)
        end = len(ids) if trained and run else end
    return Encoded(ids[:end], labels[:end])


def cut_left(ids: list[int], length: int, first: int | None) -> list[int]:
    """Keep the last `length` ids, and the beginning-of-sequence id `first` where it leads."""
    if len(ids) <= length:
        return ids
    kept = ids[:1] if ids[:1] == [first] and length > 1 else []
    return kept + ids[len(ids) - (length - len(kept)) :] if length > len(kept) else kept


def fit(row: Encoded, max_length: int, first: int | None) -> Encoded | None:
    """Bring a row to `max_length` tokens: its prompt is cut from the left, the last target stays whole where it can.

    Of the prompt at least a leading `first` (beginning-of-sequence) and one token stay. A target that is longer than
    what is then left is cut on its right. None where not one trained token would be left.
    """
    length = len(row.ids)
    if length > max_length:
        target = length
        while target and row.labels[target - 1] != IGNORED:
            target -= 1
        minimum = min(target, 2 if row.ids[:1] == [first] else 1)
        room = max(minimum, max_length - (length - target))
        ids = cut_left(row.ids[:target], room, first) + row.ids[target:]
        labels = cut_left(row.labels[:target], room, IGNORED if row.ids[:1] == [first] else None) + row.labels[target:]
        row = Encoded(ids[:max_length], labels[:max_length])
    return row if _teaches(row) else None


def _teaches(row: Encoded) -> bool:
    """Return whether a next-token loss uses any label of the row."""
    return len(row.labels) - 1 > row.labels.count(IGNORED) - (row.labels[:1] == [IGNORED])


def windows(row: Encoded, max_length: int) -> list[Encoded]:
    """Split a document into rows of at most `max_length` that share one token, so that each is trained exactly once."""
    if len(row.ids) <= max_length:
        return [row] if _teaches(row) else []
    starts = range(0, len(row.ids) - 1, max(1, max_length - 1))
    parts = [Encoded(row.ids[at : at + max_length], row.labels[at : at + max_length]) for at in starts]
    return [part for part in parts if _teaches(part)]


def encode(examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int) -> EncodedExamples:
    """Encode a data set for training, with one call of the tokenizer for all of it.

    Raises PeftkitError where the template cannot render an example or the tokenizer has no end-of-sequence token.
    """
    max_length -= len(template.soft)
    labelled = next((example.id for example in examples if LABEL in example.meta), None)
    if labelled is not None:
        raise PeftkitError(
            f"{labelled} has a label and no answer to learn: name an objective that reads labels, such as "
            "'objective: classification', or give rows with a completion."
        )
    taught = list(_taught(examples))
    rendered = [
        (at, rendering) for at, turns in taught for rendering in _render(examples[at], turns, template, tokenizer)
    ]
    # A document is trained whole, in several rows.
    wanted = [None if examples[at].turns[-1].role == "text" else max_length for at, _ in rendered]
    texts = [shorten(one.pieces, tokenizer, most) for (_, one), most in zip(rendered, wanted, strict=True)]
    runs = tokenize_pieces(texts, tokenizer)
    rows: list[Encoded] = []
    sources: list[int] = []
    prompts_cut: set[int] = set()
    targets_cut: set[int] = set()
    for (at, rendering), parts in zip(rendered, runs, strict=True):
        whole = flatten(rendering.opening, parts)
        if examples[at].turns[-1].role == "text":
            fitted = windows(whole, max_length)
        else:
            row = fit(whole, max_length, tokenizer.bos_token_id)
            fitted = [] if row is None else [row]
            if row is not None and len(whole.ids) > max_length:
                shortened = row.ids[-1] != whole.ids[-1] or _target_length(row) < _target_length(whole)
                (targets_cut if shortened else prompts_cut).add(at)
        rows += [_in_front(row, template, rendering, examples[at]) for row in fitted]
        sources += [at] * len(fitted)
    prompts_cut -= targets_cut
    held = [examples[at].id for at, turns in taught if template.reads_special(turns, tokenizer)]
    return EncodedExamples(rows, sources, len(examples) - len(set(sources)), len(prompts_cut), len(targets_cut), held)


def _taught(examples: Sequence[Example]) -> Iterator[tuple[int, Sequence[Turn]]]:
    """Yield for each example that teaches anything its position and its turns up to the last that is trained on."""
    for at, example in enumerate(examples):
        turns = example.turns
        if turns and turns[-1].role != "assistant" and turns[-1].text.strip():
            yield at, turns
            continue
        taught = [number for number, turn in enumerate(turns) if turn.answers]
        if taught:
            yield at, turns[: taught[-1] + 1]


def _render(example: Example, turns: Sequence[Turn], template: Template, tokenizer: Any) -> list[Rendering]:
    try:
        return template.render(turns, tokenizer)
    except PeftkitError as error:
        raise _placed(example, error) from None


@contextmanager
def placed(example: Example) -> Iterator[None]:
    """Tell what is refused inside with the place of the example."""
    try:
        yield
    except PeftkitError as error:
        raise _placed(example, error) from None


def _placed(example: Example, error: PeftkitError) -> PeftkitError:
    return PeftkitError(f"{example.id}: {error}")


def encode_prompts(examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int) -> EncodedExamples:
    """Encode what a model is given of each example, nothing of it to predict; longer texts are cut on their left."""
    max_length -= len(template.soft)
    renderings = [template.prompt(example, tokenizer) for example in examples]
    runs = tokenize_pieces([shorten(rendering.pieces, tokenizer, max_length) for rendering in renderings], tokenizer)
    rows: list[Encoded] = []
    cut = 0
    for example, rendering, parts in zip(examples, renderings, runs, strict=True):
        whole = rendering.opening + [token for ids, _ in parts for token in ids]
        ids = cut_left(whole, max_length, tokenizer.bos_token_id)
        cut += len(ids) < len(whole)
        rows.append(_in_front(Encoded(ids, [IGNORED] * len(ids)), template, rendering, example))
    held = [example.id for example in examples if template.reads_special(example.prompt, tokenizer)]
    return EncodedExamples(rows, list(range(len(rows))), 0, cut, 0, held)


def _in_front(row: Encoded, template: Template, rendering: Rendering, example: Example) -> Encoded:
    """Put the ids of soft prompt rows in front of a row, and the key of its example on its first id."""
    row = insert(row, template.soft, len(rendering.opening))
    return row if template.keys is None else mark(row, template.key_of(example))


def mark(row: Encoded, number: int) -> Encoded:
    """Put key `number` on the first id of a row, and on its label where that is trained, which nothing predicts."""
    trained = row.labels[:1] != [IGNORED]
    return Encoded(marked(row.ids, number), marked(row.labels, number) if trained else row.labels, row.label)


def insert(row: Encoded, soft: Sequence[int], at: int) -> Encoded:
    """Put the ids of soft prompt rows at a place in front; they are not trained on."""
    if not soft:
        return row
    labels = [*row.labels[:at], *[IGNORED] * len(soft), *row.labels[at:]]
    return Encoded([*row.ids[:at], *soft, *row.ids[at:]], labels)


def _target_length(row: Encoded) -> int:
    """Count the trained tokens at the end of a row."""
    for count, label in enumerate(reversed(row.labels)):
        if label == IGNORED:
            return count
    return len(row.labels)
