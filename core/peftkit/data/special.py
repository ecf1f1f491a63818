"""Special tokens that stand as text in data: read as the tokens, written as plain text, or refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from peftkit.data.example import Example, Turn
from peftkit.errors import PeftkitError

KEEP, ESCAPE, REFUSE = "keep", "escape", "refuse"
MARK = "\ufdd0"
"""Behind each character of a token that is to be plain text: no text has this character, by the Unicode standard."""
STAND_IN = "\ufdd1{}\ufdd1"
"""What the template's own special tokens are called while those of the data are plain text."""


def check(policy: str, tokenizer: Any) -> None:
    """Refuse to `escape` with a tokenizer that knows special tokens in every text."""
    if policy == ESCAPE and not getattr(tokenizer, "is_fast", False):
        raise PeftkitError(
            f"dataset.special is '{ESCAPE}', and the tokenizer of this model ({type(tokenizer).__name__}) cannot read "
            f"a special token as plain text. Allowed: {KEEP}, {REFUSE}."
        )


def read(turns: Sequence[Turn], policy: str, tokenizer: Any) -> Sequence[Turn]:
    """Return the turns as the policy has them rendered; PeftkitError where it refuses one."""
    token = None if policy == KEEP else found(turns, tokenizer)
    if token is None:
        return turns
    if policy == REFUSE:
        raise PeftkitError(
            f"a text holds the special token {token!r}, and dataset.special is '{REFUSE}': take it out, or write "
            f"'{ESCAPE}' to have it read as plain text."
        )
    tokens = _pattern(tokenizer, len(tokenizer))
    return [replace(turn, text=tokens.sub(_mark, turn.text), more=tokens.sub(_mark, turn.more)) for turn in turns]


def found(turns: Iterable[Turn], tokenizer: Any) -> str | None:
    """Return the first special token that stands in the texts of turns."""
    tokens = _pattern(tokenizer, len(tokenizer))
    matches = (tokens.search(text) for turn in turns for text in (turn.text, turn.more) if text)
    return next((match[0] for match in matches if match), None)


def notice(count: int, first: str) -> str:
    """Say how many texts hold special tokens, which are read as such, and where the first one is."""
    return (
        f"{count} of the texts {'hold' if count > 1 else 'holds'} special tokens, which are read as such (first: "
        f"{first}); dataset.special: {ESCAPE} reads them as plain text."
    )


def notices(examples: Iterable[Example], policy: str, tokenizer: Any) -> list[str]:
    """Return the notice of the prompts of examples, where the policy keeps what they hold; none where none holds any.

    Of examples that are trained on, `EncodedExamples.notices` tells.
    """
    held = [example.id for example in examples if policy == KEEP and found(example.prompt, tokenizer)]
    return [notice(len(held), held[0])] if held else []


def plain(text: str) -> str:
    """Return a rendered text as a person reads it."""
    return text.replace(MARK, "")


def tokenized(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the ids of rendered texts; what `read` escaped in them is plain text, all else as the tokenizer has it."""
    marked = [number for number, text in enumerate(texts) if MARK in text]
    direct = [text for text in texts if MARK not in text]
    ids = iter(_ids(direct, tokenizer) if direct else [])
    escaped = iter(_escaped([texts[number] for number in marked], tokenizer) if marked else [])
    places = set(marked)
    return [next(escaped if number in places else ids) for number in range(len(texts))]


def _ids(texts: list[str], tokenizer: Any, **rest: Any) -> list[list[int]]:
    backend = None if rest else _backend(tokenizer)
    if backend is not None and _plain(backend, tokenizer):
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]
    quiet = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    return tokenizer(texts, add_special_tokens=False, **quiet, **rest)["input_ids"]


@lru_cache(maxsize=64)
def _backend(tokenizer: Any) -> Any:
    """Return the tokenizer of `tokenizers` behind one whose class makes its ids of nothing else, ready for texts.

    None for another. It takes half the time of a call of transformers, which makes more than the ids.
    """
    made = [getattr(type(tokenizer), name, None) for name in ("__call__", "_encode_plus")]
    if not all(getattr(each, "__module__", "").startswith("transformers.tokenization_utils") for each in made):
        return None
    # A first call sets the backend up as the tokenizer is.
    tokenizer(["a"], add_special_tokens=False)
    return getattr(tokenizer, "backend_tokenizer", None)


def _plain(backend: Any, tokenizer: Any) -> bool:
    """Say whether no call left a backend with limits, padding or a way to read special tokens that is not its own."""
    split = backend.encode_special_tokens
    return backend.truncation is None and backend.padding is None and split == tokenizer.split_special_tokens


def _escaped(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokenize texts in which only the template's tokens are special: under other names, which alone are known."""
    twin, names, own = _twin(tokenizer, len(tokenizer))
    tokens = _pattern(tokenizer, len(tokenizer))
    named = [plain(tokens.sub(lambda match: names[match[0]], text)) for text in texts]
    return [[own.get(token, token) for token in ids] for ids in _ids(named, twin, split_special_tokens=True)]


@lru_cache(maxsize=16)
def _twin(tokenizer: Any, size: int) -> tuple[Any, dict[str, str], dict[int, int]]:
    """Return a tokenizer with a second name for each special token, the names, and the ids of their tokens."""
    twin, names = copy.deepcopy(tokenizer), {}
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    for number, text in enumerate(_special(tokenizer)):
        names[text] = STAND_IN.format(number)
        own = added[text]
        kept = {"lstrip": own.lstrip, "rstrip": own.rstrip, "single_word": own.single_word}
        twin.add_tokens([type(own)(names[text], special=False, normalized=False, **kept)])
    ids = {twin.convert_tokens_to_ids(name): tokenizer.convert_tokens_to_ids(text) for text, name in names.items()}
    return twin, names, ids


@lru_cache(maxsize=64)
def _pattern(tokenizer: Any, size: int) -> re.Pattern[str]:
    """Return what finds special tokens in a text, the longest first; `size` changes where tokens are added."""
    longest = sorted(_special(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def _special(tokenizer: Any) -> list[str]:
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return list(dict.fromkeys(text for text in added if text))


def _mark(match: re.Match[str]) -> str:
    return "".join(character + MARK for character in match[0])
