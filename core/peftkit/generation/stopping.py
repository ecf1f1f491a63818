"""Where an answer ends: at a token that ends sequences, or at a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peftkit.errors import PeftkitError
from peftkit.generation.settings import Settings

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a token decodes to that holds a part of a character only."""


def own_ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end sequences by the model's generation settings, one or several, and by the tokenizer."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = own if isinstance(own, list | tuple) else [own]
    return tuple(dict.fromkeys(end for end in (*several, tokenizer.eos_token_id) if end is not None))


def _added(tokenizer: Any) -> dict[int, Any]:
    return getattr(tokenizer, "added_tokens_decoder", {})


@dataclass(frozen=True)
class Stopping:
    """The ids and texts that end an answer."""

    tokenizer: Any
    ends: frozenset[int]
    texts: tuple[str, ...]
    known: dict[int, bool] = field(default_factory=dict, repr=False)
    """Whether a token may end an answer, for those seen so far."""

    @classmethod
    def of(cls, model: Any, tokenizer: Any, settings: Settings) -> Stopping:
        """Read the settings; without `ends` the model's own are taken, and a text that is a special token is an end.

        Raises PeftkitError for a text that a special token is a part of: an answer's text has none.
        """
        ends = own_ends(model, tokenizer) if settings.ends is None else settings.ends
        special = {str(token): id for id, token in _added(tokenizer).items() if token.special}
        texts = tuple(text for text in settings.stop if text and text not in special)
        for text in texts:
            inside = next((token for token in special if token in text), None)
            if inside is not None:
                raise PeftkitError(
                    f"generation.stop: {text!r} holds the special token {inside!r} and other text, which no answer "
                    f"does: write {inside!r} alone, or the other text."
                )
        named = (special[text] for text in settings.stop if text in special)
        return cls(tokenizer, frozenset((*ends, *named)), texts)

    def may_end(self, token: int) -> bool:
        """Say whether an answer could end with `token`: decoding the end of each answer at each step takes long."""
        if token not in self.known:
            self.known[token] = token in self.ends or self._may_complete(token)
        return self.known[token]

    def _may_complete(self, token: int) -> bool:
        """Say whether `token` could be the last of those that spell a stop text, and so holds its last character."""
        if not self.texts:
            return False
        own = self.decode([token])
        # Tokenizers may drop a space where a text begins.
        return BROKEN in own or any(text[-1] in own or text[-1] == " " for text in self.texts)

    def ended(self, ids: Sequence[int]) -> bool:
        """Say whether the last of the generated `ids` ends the answer."""
        if ids[-1] in self.ends:
            return True
        if not self.may_end(ids[-1]):
            return False
        # A character takes at most four tokens of bytes, so a text that has just ended lies within these.
        return any(text in self.decode(ids[-4 * len(text) - 8 :]) for text in self.texts)

    def text(self, ids: Sequence[int]) -> str:
        """Return the answer's text up to the first stop text."""
        answer = self.decode(ids)
        return answer[: min((at for at in map(answer.find, self.texts) if at >= 0), default=len(answer))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
