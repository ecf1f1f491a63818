"""How a conversation becomes text for one model: the same object serves training, evaluation and export."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from peftkit.data.encode import Encoded, Piece, closing, cut_left, encode, opening, placed, tokenize_pieces
from peftkit.data.example import Example, Turn
from peftkit.errors import PeftkitError
from peftkit.registry import Registry

AUTOMATIC = "auto"


@dataclass(frozen=True)
class Rendering:
    """The ids in front, and the pieces of text after them."""

    opening: list[int]
    pieces: list[Piece]


class Template(ABC):
    """Renders turns into pieces of text; everything else follows from that."""

    name: str
    soft: tuple[int, ...] = ()
    """Ids of soft prompt rows; they stand behind the beginning-of-sequence token, or first where there is none."""

    def with_soft(self, ids: Sequence[int]) -> Self:
        """Return this template with the ids of soft prompt rows in front of every text."""
        template = copy.copy(self)
        template.soft = tuple(ids)
        return template

    @abstractmethod
    def suitability(self, tokenizer: Any) -> int:
        """Say how well the template goes with a tokenizer; the highest wins, 0 means not at all."""

    @abstractmethod
    def render_turns(self, turns: Sequence[Turn], tokenizer: Any) -> list[Rendering]:
        """Render a conversation that ends with an assistant turn: assistant text and its end are trained on.

        Each answer is trained on once, after exactly the text that generation would begin from; where the template
        renders earlier answers in another way than the last one, that takes several renderings, the longest first.
        """

    @abstractmethod
    def render_prompt(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        """Render the turns before an assistant turn, up to where its text begins; nothing is trained on."""

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids that end an assistant turn."""
        return [closing(tokenizer)]

    def render(self, turns: Sequence[Turn], tokenizer: Any) -> list[Rendering]:
        """Render a conversation or a document for training, as one row or several, the longest first.

        Raises PeftkitError for turns that are neither a single document nor a conversation that the assistant ends.
        """
        roles = [turn.role for turn in turns]
        if roles == ["text"]:
            return [Rendering(opening(tokenizer), [Piece(turns[0].text, trained=True, ends=True)])]
        if not roles or roles[-1] != "assistant" or "text" in roles:
            raise PeftkitError(
                f"an example with the turns {', '.join(roles) or '(none)'} cannot be trained on: "
                "it is either one document, or a conversation whose last turn is the assistant's."
            )
        return self.render_turns(turns, tokenizer)

    def encode(self, example: Example, tokenizer: Any, max_length: int) -> Encoded | None:
        """Return ids and labels of at most `max_length` tokens, or None where no target would be left.

        Of a document longer than that, the first part; of several rows, the longest. `peftkit.data.encode.encode` does
        a whole data set at once.
        """
        rows = encode([example], self, tokenizer, max_length).rows
        return rows[0] if rows else None

    def prompt_ids(self, example: Example, tokenizer: Any, max_length: int | None = None) -> list[int]:
        """Return the ids [T] that the model continues in evaluation, the last `max_length` of them where given."""
        turns = example.prompt
        if turns and turns[-1].role == "text":
            rendering = Rendering(opening(tokenizer), [Piece(turns[-1].text, trained=False)])
        else:
            with placed(example):
                rendering = self.render_prompt(turns, tokenizer)
        (runs,) = tokenize_pieces([rendering.pieces], tokenizer)
        ids = rendering.opening + [token for run, _ in runs for token in run]
        if max_length is not None:
            ids = cut_left(ids, max_length - len(self.soft), tokenizer.bos_token_id)
        first = len(rendering.opening)
        return [*ids[:first], *self.soft, *ids[first:]]

    def text(self, example: Example, tokenizer: Any) -> str:
        """Return what the model is trained on as one text, special tokens included."""
        rendering = self.render(example.turns, tokenizer)[0]
        end = tokenizer.eos_token or ""
        return tokenizer.decode(rendering.opening) + "".join(
            piece.text + (end if piece.ends else "") for piece in rendering.pieces
        )


TEMPLATES: Registry[Template] = Registry("template", "peftkit.data.templates")


def choose(name: str, tokenizer: Any) -> Template:
    """Return the template of that name, or for `auto` the one that suits the tokenizer best.

    Raises PeftkitError for an unknown name and for a template that the tokenizer cannot serve.
    """
    if name == AUTOMATIC:
        return max(
            (template for _, template in TEMPLATES.items()), key=lambda template: template.suitability(tokenizer)
        )
    template = TEMPLATES[name]
    if not template.suitability(tokenizer):
        able = [key for key, other in TEMPLATES.items() if other.suitability(tokenizer)]
        raise PeftkitError(
            f"dataset.template is '{name}', and the tokenizer of this model has no such template. "
            f"Allowed: {', '.join([AUTOMATIC, *able])}."
        )
    return template
