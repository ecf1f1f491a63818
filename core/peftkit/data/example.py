"""What a task reader gives: conversations with the gold outputs of their last turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LABEL = "label"
"""The key in an example's `meta` of the class that its whole text belongs to, a text or a whole number."""
Role = Literal["tools", "system", "user", "assistant", "tool", "text"]


@dataclass(frozen=True)
class Turn:
    """One utterance; the role `text` is a raw document, every token of which is trained.

    The role `tools` is what a conversation may begin with: the tools that can be called, as a JSON list.
    """

    role: Role
    text: str
    trained: bool = True
    """Of an assistant's turn, whether the loss falls on it; an empty one has none either way."""
    more: str = ""
    """What else the message has for the chat template (`tool_calls`, `name`, `tool_call_id`), as a JSON object."""

    @property
    def answers(self) -> bool:
        """Whether the loss falls on it in a conversation."""
        return self.role == "assistant" and self.trained and bool(self.text.strip() or self.more)


@dataclass(frozen=True)
class Example:
    """One conversation or document.

    The loss falls on its assistant (or text) turns; in evaluation the last assistant turn is left out and generated.
    """

    id: str
    turns: tuple[Turn, ...]
    references: tuple[str, ...] = ()
    """All gold outputs of this input."""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns that the model is given in evaluation: all but a closing assistant turn."""
        return self.turns[:-1] if self.turns and self.turns[-1].role == "assistant" else self.turns


def question(identity: str, prompt: str, target: str, **meta: Any) -> Example:
    """Return the example of one prompt and one gold output."""
    return Example(identity, (Turn("user", prompt), Turn("assistant", target)), (target,), meta)
