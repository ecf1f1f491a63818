"""How a conversation becomes text for one model: the same object serves training, evaluation and export."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from typing_extensions import Self

from peftkit.data import special
from peftkit.data.encode import Encoded, Piece, closing, cut_left, encode, opening, placed, tokenize_pieces
from peftkit.data.example import Example, Turn
from peftkit.errors import PeftkitError
from peftkit.keys import Keys, marked
from peftkit.registry import Registry

AUTOMATIC = "auto"


class Rendering(NamedTuple):
    """The ids in front, and the pieces of text after them."""

    opening: list[int]
    pieces: list[Piece]


class Template(ABC):
    """Renders turns into pieces of text; everything else follows from that."""

    name: str
    soft: tuple[int, ...] = ()
    """Ids of soft prompt rows; they stand behind the beginning-of-sequence token, or first where there is none."""
    keys: Keys | None = None
    """The keys of examples by which adapters are chosen; the first id of each row carries that of its example."""
    special: str = special.KEEP
    """What becomes of special tokens in the turns' texts (`peftkit.data.special`)."""

    def with_soft(self, ids: Sequence[int]) -> Self:
        """Return this template with the ids of soft prompt rows in front of every text."""
        template = copy.copy(self)
        template.soft = tuple(ids)
        return template

    def with_keys(self, keys: Keys | None) -> Self:
        """Return this template with the key of its example on the first id of each text; None: without."""
        template = copy.copy(self)
        template.keys = keys
        return template

    def with_special(self, policy: str, tokenizer: Any) -> Self:
        """Return this template with another way to read special tokens in texts; PeftkitError where it cannot be."""
        special.check(policy, tokenizer)
        template = copy.copy(self)
        template.special = policy
        return template

    def reads_special(self, turns: Sequence[Turn], tokenizer: Any) -> bool:
        """Say whether the texts of turns hold special tokens that are read as such."""
        return self.special == special.KEEP and special.found(turns, tokenizer) is not None

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

    def takes_system(self, tokenizer: Any) -> bool:
        """Say whether a conversation may begin with a system turn, which the model is then shown as such."""
        return False

    def for_transformers(self, tokenizer: Any) -> str | None:
        """Return a chat template in Jinja with which transformers writes what this one does; None: the tokenizer's."""
        return None

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the ids that end an assistant turn."""
        return [closing(tokenizer)]

    def render(self, turns: Sequence[Turn], tokenizer: Any) -> list[Rendering]:
        """Render a conversation or a document for training, as one row or several, the longest first.

        Raises PeftkitError for turns that are neither a single document nor a conversation that the assistant ends.
        """
        turns, roles = special.read(turns, self.special, tokenizer), [turn.role for turn in turns]
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
        rendering = self.prompt(example, tokenizer)
        (runs,) = tokenize_pieces([rendering.pieces], tokenizer)
        ids = rendering.opening + [token for run, _ in runs for token in run]
        if max_length is not None:
            ids = cut_left(ids, max_length - len(self.soft), tokenizer.bos_token_id)
        first = len(rendering.opening)
        ids = [*ids[:first], *self.soft, *ids[first:]]
        return ids if self.keys is None else marked(ids, self.key_of(example))

    def key_of(self, example: Example) -> int:
        """Return the number of an example's key; PeftkitError with the example's id where it has none that is known."""
        assert self.keys is not None
        with placed(example):
            return self.keys.number_in(example.meta)

    def prompt(self, example: Example, tokenizer: Any) -> Rendering:
        """Render what the model is given of an example in evaluation; what the template refuses is told with its id."""
        with placed(example):
            turns = special.read(example.prompt, self.special, tokenizer)
            if turns and turns[-1].role == "text":
                return Rendering(opening(tokenizer), [Piece(turns[-1].text, trained=False)])
            return self.render_prompt(turns, tokenizer)

    def text(self, example: Example, tokenizer: Any) -> str:
        """Return what the model is trained on as one text, special tokens included."""
        rendering = self.render(example.turns, tokenizer)[0]
        end = tokenizer.eos_token or ""
        return tokenizer.decode(rendering.opening) + "".join(
            special.plain(piece.text) + (end if piece.ends else "") for piece in rendering.pieces
        )


TEMPLATES: Registry[Template] = Registry("template", "peftkit.data.templates")


def choose(name: str, tokenizer: Any, policy: str = special.KEEP) -> Template:
    """Return the template of that name, or for `auto` the one that suits the tokenizer best.

    It reads special tokens in texts by the `policy`.

    Raises PeftkitError for an unknown name and for a template that the tokenizer cannot serve.
    """
    if name == AUTOMATIC:
        best = max((other for _, other in TEMPLATES.items()), key=lambda template: template.suitability(tokenizer))
        return best.with_special(policy, tokenizer)
    template = TEMPLATES[name]
    if not template.suitability(tokenizer):
        able = [key for key, other in TEMPLATES.items() if other.suitability(tokenizer)]
        raise PeftkitError(
            f"dataset.template is '{name}', and the tokenizer of this model has no such template. "
            f"Allowed: {', '.join([AUTOMATIC, *able])}."
        )
    return template.with_special(policy, tokenizer)
