"""The bundled conversations, in the format of CoQA v1.0 (Reddy et al. 2019, arXiv:1808.07042)."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from peftkit import files
from synthetic.conversations import UNKNOWN, Asked, Conversation, write_article, write_story
from synthetic.grammar import capital, pick
from synthetic.sets import SETS


def write_turn(asked: Asked, answer: str, story: str, turn: int) -> dict[str, Any]:
    """Return one answer with the place of its evidence in the story."""
    if not asked.evidence:
        return {"span_start": -1, "span_end": -1, "span_text": UNKNOWN, "input_text": UNKNOWN, "turn_id": turn}
    start = story.index(asked.evidence)
    end = start + len(asked.evidence)
    return {"span_start": start, "span_end": end, "span_text": asked.evidence, "input_text": answer, "turn_id": turn}


def write_conversation(conversation: Conversation, identity: str, rng: Random, others: int) -> dict[str, Any]:
    """Return one element of the file's `data`; `others` is the number of additional answers a question."""
    turns = list(enumerate(conversation.turns, 1))
    written: dict[str, Any] = {
        "source": conversation.domain,
        "id": identity,
        "filename": f"{identity}.txt",
        "story": conversation.story,
        "questions": [{"input_text": asked.question, "turn_id": turn} for turn, asked in turns],
        "answers": [write_turn(asked, asked.answers[0], conversation.story, turn) for turn, asked in turns],
    }
    if others:
        written["additional_answers"] = {
            str(other): [
                write_turn(asked, vary(pick(rng, asked.answers), rng), conversation.story, turn)
                for turn, asked in turns
            ]
            for other in range(others)
        }
    return {**written, "name": f"{identity}.txt"}


def vary(answer: str, rng: Random) -> str:
    """Write an answer as another person might: with a capital or a full stop."""
    return pick(rng, (answer, capital(answer), f"{capital(answer)}."))


@SETS.register("coqa")
def write_coqa(folder: Path, seed: int) -> None:
    """Write the train and the dev file, the latter with three additional answers a question."""
    rng = Random(f"{seed}/coqa")
    for split, count, others in (("train", 40, 0), ("dev", 12, 3)):
        data = []
        while len(data) < count:
            conversation = (write_story if len(data) % 2 else write_article)(rng)
            if len(conversation.turns) >= 6:
                data.append(write_conversation(conversation, f"generated-{split}-{len(data) + 1:03d}", rng, others))
        text = json.dumps({"version": "1.0", "data": data}, ensure_ascii=False)
        files.write_text(folder / f"coqa-{split}-v1.0.json", text + "\n")
