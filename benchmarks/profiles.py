"""What the benchmark of training trains on: batches of random tokens that have the lengths and repeats of data sets.

| profile | a batch |
|---|---|
| `e2e` | E2E in random order: prompts of 30 to 45 tokens, no two alike, targets of 25 to 35 |
| `e2e-grouped` | the same, with the eight references of an input beside each other |
| `e2e-template` | the same as `e2e`, with 40 tokens of instruction in front of every prompt |
| `coqa` | CoQA turn by turn: 8 turns of one story of 300 to 350 tokens, each behind what was said (15 to 20 a turn) |
| `coqa-chat` | CoQA as conversations: a story and its 16 turns in one row, which is trained on all answers |
| `gsm8k` | GSM8K: prompts of 60 to 100 tokens, answers of 100 to 130 |
| `long` | documents of 1,536 to 2,048 tokens, all trained on |
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import workload  # noqa: F401  (finds the package)

from peftkit.data.encode import IGNORED, Encoded

FIRST = 3
"""The smallest token that is drawn: those below stand for padding and the ends of texts."""
REFERENCES = 8
TURNS = 16


@dataclass(frozen=True)
class Work:
    """Batches of rows, each row with its labels; all batches have the same number of rows."""

    batches: list[list[Encoded]]

    @property
    def rows(self) -> list[Encoded]:
        """The rows of all batches in order."""
        return [row for batch in self.batches for row in batch]

    def trained(self, batch: int) -> int:
        """Count the trained tokens of a batch."""
        return sum(row.trained for row in self.batches[batch])

    def tokens(self, batch: int) -> int:
        """Count the tokens of a batch without padding."""
        return sum(len(row.ids) for row in self.batches[batch])

    def distinct(self, batch: int) -> int:
        """Count the tokens of a batch without padding, those that rows have in common from their start on once."""
        nodes: dict[tuple[int, int], int] = {}
        for row in self.batches[batch]:
            at = 0
            for token in row.ids:
                at = nodes.setdefault((at, token), len(nodes) + 1)
        return len(nodes)


class Tokens:
    """Draws runs of random tokens."""

    def __init__(self, seed: int, vocabulary: int):
        self.random, self.vocabulary = random.Random(seed), vocabulary

    def run(self, shortest: int, longest: int) -> list[int]:
        """Draw a run whose length lies evenly between two bounds, both included."""
        length = self.random.randint(shortest, longest)
        return [self.random.randrange(FIRST, self.vocabulary) for _ in range(length)]


def row(prompt: Sequence[int], target: Sequence[int]) -> Encoded:
    """Make the row that is trained on its target."""
    return Encoded([*prompt, *target], [*[IGNORED] * len(prompt), *target])


def e2e(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of the E2E lengths, with prompts of their own."""
    while True:
        yield [row(tokens.run(30, 45), tokens.run(25, 35)) for _ in range(rows)]


def e2e_grouped(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of the E2E lengths in which eight references follow each other."""
    while True:
        prompts = [tokens.run(30, 45) for _ in range(-(-rows // REFERENCES))]
        yield [row(prompts[number // REFERENCES], tokens.run(25, 35)) for number in range(rows)]


def e2e_template(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of the E2E lengths behind one instruction."""
    instruction = tokens.run(40, 40)
    while True:
        yield [row([*instruction, *tokens.run(30, 45)], tokens.run(25, 35)) for _ in range(rows)]


def turns(tokens: Tokens) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
    """Draw a story and its questions and answers."""
    return tokens.run(300, 350), [(tokens.run(10, 13), tokens.run(5, 7)) for _ in range(TURNS)]


def coqa(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of `rows` turns of one story that follow each other, each behind the story and what was said."""
    while True:
        story, said = turns(tokens)
        prompts = [story]
        for question, answer in said:
            prompts[-1] = [*prompts[-1], *question]
            prompts.append([*prompts[-1], *answer])
        made = [row(prompt, answer) for prompt, (_, answer) in zip(prompts, said, strict=False)]
        for start in range(0, TURNS - rows + 1, rows):
            yield made[start : start + rows]


def coqa_chat(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of whole conversations."""
    while True:
        batch = []
        for _ in range(rows):
            story, said = turns(tokens)
            ids, labels = [*story], [IGNORED] * len(story)
            for question, answer in said:
                ids += [*question, *answer]
                labels += [*[IGNORED] * len(question), *answer]
            batch.append(Encoded(ids, labels))
        yield batch


def gsm8k(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of the GSM8K lengths."""
    while True:
        yield [row(tokens.run(60, 100), tokens.run(100, 130)) for _ in range(rows)]


def long(tokens: Tokens, rows: int) -> Iterator[list[Encoded]]:
    """Yield batches of long documents."""
    while True:
        yield [row([], tokens.run(1536, 2048)) for _ in range(rows)]


PROFILES: dict[str, tuple[Callable[[Tokens, int], Iterator[list[Encoded]]], int]] = {
    "e2e": (e2e, 16),
    "e2e-grouped": (e2e_grouped, 16),
    "e2e-template": (e2e_template, 16),
    "coqa": (coqa, 8),
    "coqa-chat": (coqa_chat, 1),
    "gsm8k": (gsm8k, 8),
    "long": (long, 4),
}
"""Each profile with the rows of its batches."""


def draw(profile: str, batches: int, rows: int, vocabulary: int, seed: int = 0) -> Work:
    """Draw the batches of a profile, the same for the same arguments."""
    made = PROFILES[profile][0](Tokens(seed, vocabulary), rows)
    return Work([next(made) for _ in range(batches)])
