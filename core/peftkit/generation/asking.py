"""Examples to answers: prompts within the context, conversations turn by turn, in chunks that can be written down."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peftkit.data.example import Example
from peftkit.data.template import Template
from peftkit.errors import PeftkitError
from peftkit.generation.decoding import Generation, OnProgress, Thread, converse
from peftkit.generation.journal import Journal
from peftkit.generation.limits import context_length
from peftkit.generation.settings import Settings
from peftkit.tasks import Task

History = Literal["gold", "predicted"]
BATCHES = 8
"""Batches of prompts of one chunk. Within a chunk the batch is kept full, and at its end it runs empty; what is written
are whole chunks, since an answer's last bits, and with a tie its tokens, depend on what is computed beside it."""


@dataclass
class Asked:
    """A set of examples, and the answers to them."""

    model: Any
    tokenizer: Any
    task: Task
    examples: Sequence[Example]
    template: Template
    settings: Settings
    history: History = "gold"
    """Whose earlier answers stand in the prompts of a conversation: the right ones or the model's own."""
    shortened: set[int] = field(default_factory=set)
    """The examples whose prompts lost their beginning."""
    wall_s: float = 0.0
    """Seconds for generating, those of earlier sittings included."""

    def __post_init__(self) -> None:
        context, new = context_length(self.model), self.settings.max_new_tokens
        if context is not None and new >= context:
            raise PeftkitError(
                f"generation.max_new_tokens is {new}, and the model takes {context} positions in all: nothing is left "
                "for the prompt. Lower generation.max_new_tokens."
            )
        self.room = None if context is None else context - new
        self.answers: list[Generation | None] = [None] * len(self.examples)
        grouped: dict[Any, list[int]] = {}
        for number, example in enumerate(self.examples):
            key = self.task.conversation(example)
            grouped.setdefault(("alone", number) if key is None else ("together", key), []).append(number)
        self.conversations = list(grouped.values())

    def answer(
        self, batch_size: int, journal: Journal | None = None, on_progress: OnProgress | None = None
    ) -> list[Generation]:
        """Answer every example, `batch_size` prompts at a time; what the journal holds is taken from there.

        `on_progress` receives (answers so far, all). The answers are the same with and without an interruption.
        """
        written = {record["chunk"]: record for record in journal.records} if journal else {}
        caching = None
        for number, chunk in enumerate(self._chunks(batch_size)):
            indices = [index for conversation in chunk for index in conversation]
            if number in written and [answer[0] for answer in written[number]["answers"]] == indices:
                self._take(written[number])
                self._tell(on_progress)
                continue
            began = time.monotonic()
            threads = [self._turns(conversation, on_progress) for conversation in chunk]
            caching = converse(
                self.model, self.tokenizer, threads, self.settings, batch_size=batch_size, caching=caching
            )
            wall = time.monotonic() - began
            self.wall_s += wall
            if journal:
                journal.append({"chunk": number, "wall_s": wall, "answers": [self._record(index) for index in indices]})
        return [answer for answer in self.answers if answer is not None]

    def posed(self, conversation: Sequence[int], turn: int) -> Example:
        """Return the example of a turn as it is asked; the turns before are answered."""
        examples = [self.examples[index] for index in conversation[: turn + 1]]
        if self.history == "gold" or not turn:
            return examples[-1]
        said = [self.answers[index] for index in conversation[:turn]]
        return self.task.said(examples, [answer.text.strip() for answer in said if answer is not None])

    def prompt_ids(self, index: int, example: Example) -> list[int]:
        """Return the ids of a prompt; one that does not fit into the context loses its beginning and is noted."""
        ids = self.template.prompt_ids(example, self.tokenizer)
        if self.room is not None and len(ids) > self.room:
            self.shortened.add(index)
            ids = self.template.prompt_ids(example, self.tokenizer, self.room)
        return ids

    def _turns(self, conversation: Sequence[int], on_progress: OnProgress | None) -> Thread:
        for turn, index in enumerate(conversation):
            self.answers[index] = yield index, self.prompt_ids(index, self.posed(conversation, turn))
            self._tell(on_progress)

    def _chunks(self, batch_size: int) -> Iterator[list[list[int]]]:
        """Yield conversations, those with the longest first prompts first, in groups that fill several batches."""
        lengths = {first: len(self.prompt_ids(first, self.examples[first])) for first, *_ in self.conversations}
        chunk: list[list[int]] = []
        for conversation in sorted(self.conversations, key=lambda own: (-lengths[own[0]], own[0])):
            chunk.append(conversation)
            if len(chunk) >= batch_size and sum(map(len, chunk)) >= BATCHES * batch_size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _record(self, index: int) -> list[Any]:
        answer = self.answers[index]
        assert answer is not None
        return [index, answer.text, answer.ids, answer.finished, index in self.shortened]

    def _take(self, record: dict[str, Any]) -> None:
        self.wall_s += record["wall_s"]
        for index, text, ids, finished, shortened in record["answers"]:
            self.answers[index] = Generation(text, ids, finished)
            if shortened:
                self.shortened.add(index)

    def _tell(self, on_progress: OnProgress | None) -> None:
        if on_progress:
            on_progress(sum(answer is not None for answer in self.answers), len(self.answers))
