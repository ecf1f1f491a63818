"""Prompt, line break, target, end-of-sequence: for models without a conversation format of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftkit.data.encode import Piece, join, opening
from peftkit.data.example import Turn
from peftkit.data.template import TEMPLATES, Rendering, Template

BREAK = "\n"


class PlainText(Template):
    """`[bos] prompt \\n target eos`; further turns follow the eos in the same way."""

    name = "plain"

    def suitability(self, tokenizer: Any) -> int:
        return 1

    def render_turns(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        pieces = []
        for turn in turns:
            answers = turn.role == "assistant"
            pieces.append(Piece(turn.text if answers else turn.text + BREAK, trained=answers, ends=answers))
        return Rendering(opening(tokenizer), join(pieces))

    def render_prompt(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        whole = self.render_turns(turns, tokenizer)
        return Rendering(whole.opening, [Piece(piece.text, trained=False, ends=piece.ends) for piece in whole.pieces])


TEMPLATES.add(PlainText.name, PlainText())
