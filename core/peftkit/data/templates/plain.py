"""Prompt, line break, target, end-of-sequence: for models without a conversation format of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.data.encode import Piece, join, opening
from peftkit.data.example import Turn
from peftkit.data.template import TEMPLATES, Rendering, Template
from peftkit.errors import PeftkitError

BREAK = "\n"
CHAT = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""The same in Jinja, behind the beginning-of-sequence token."""


class PlainText(Template):
    """`[bos] prompt \\n target eos`; further turns follow the eos in the same way."""

    name = "plain"

    def suitability(self, tokenizer: Any) -> int:
        return 1

    def render_turns(self, turns: Sequence[Turn], tokenizer: Any) -> list[Rendering]:
        tools = next((turn for turn in turns if turn.role in ("tools", "tool") or turn.more), None)
        if tools is not None:
            raise PeftkitError(
                "the template 'plain' has no way to write tools and calls of tools: train a model whose tokenizer has "
                "a chat template for them, or leave them out by `dataset.ignore`."
            )
        pieces = []
        for turn in turns:
            ends = turn.role == "assistant"
            pieces.append(Piece(turn.text if ends else turn.text + BREAK, trained=turn.answers, ends=ends))
        return [Rendering(opening(tokenizer), join(pieces))]

    def for_transformers(self, tokenizer: Any) -> str | None:
        return ("{{ bos_token }}" if opening(tokenizer) else "") + CHAT

    def render_prompt(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        (whole,) = self.render_turns(turns, tokenizer)
        return Rendering(whole.opening, [Piece(piece.text, trained=False, ends=piece.ends) for piece in whole.pieces])


TEMPLATES.add(PlainText.name, PlainText())
