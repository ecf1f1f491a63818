"""A story's questions, over one growing cache, with the right earlier answers or with the model's own."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from model_folders import byte_tokenizer

from peftkit.data.template import choose
from peftkit.evaluation import evaluate_loaded
from peftkit.generation import Settings, decoding, generate
from peftkit.generation.cache import RowCache
from peftkit.models.tiny import tiny
from peftkit.recipe import GenerationSection
from peftkit.tasks import TASKS

COQA = TASKS["coqa"]
NEW = 5


def conversation(name: str, story: str, turns: int) -> dict:
    said = {
        "questions": [{"input_text": f"{name} {turn}?", "turn_id": turn + 1} for turn in range(turns)],
        "answers": [{"input_text": f"r{turn}", "turn_id": turn + 1} for turn in range(turns)],
    }
    return {"source": "mctest", "id": name, "story": story, **said}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = tmp_path_factory.mktemp("coqa") / "coqa-dev-v1.0.json"
    data = [conversation("aa", "It was so.", 3), conversation("b", "A long time ago.", 4), conversation("c", "No.", 1)]
    path.write_text(json.dumps({"data": data}))
    return COQA.read_file(path)


@pytest.fixture(scope="module")
def subject():
    model, tokenizer = tiny("llama"), byte_tokenizer()
    return model, tokenizer, choose("plain", tokenizer)


def run(subject, examples, **keys):
    model, tokenizer, template = subject
    section = GenerationSection(max_new_tokens=NEW, **keys.pop("generation", {}))
    return evaluate_loaded(model, tokenizer, COQA, examples, template, generation=section, batch_size=2, **keys)


def alone(subject, example):
    """Answer one prompt by itself."""
    model, tokenizer, template = subject
    settings = Settings(max_new_tokens=NEW, stop=COQA.stop)
    return generate(model, tokenizer, [template.prompt_ids(example, tokenizer)], settings)[0].text.strip()


@pytest.mark.parametrize("beams", [1, 2])
def test_right_answers_stand_in_the_prompts(subject, examples, beams):
    found = run(subject, examples, generation={"num_beams": beams})
    assert [record["prompt"] for record in found.predictions] == [example.prompt[-1].text for example in examples]
    assert "A: r0\nQ: aa 1?\nA: r1\nQ: aa 2?\nA:" in found.predictions[2]["prompt"]
    if beams == 1:
        assert [record["prediction"] for record in found.predictions] == [alone(subject, item) for item in examples]


def test_own_answers_stand_in_the_prompts(subject, examples):
    found = run(subject, examples, history="predicted").predictions
    answers = [record["prediction"] for record in found]
    assert found[2]["prompt"] == f"It was so.\n\nQ: aa 0?\nA: {answers[0]}\nQ: aa 1?\nA: {answers[1]}\nQ: aa 2?\nA:"
    for index in (0, 3, 7):
        assert found[index]["prompt"] == examples[index].prompt[-1].text
    for index, first in ((1, 0), (2, 0), (4, 3), (5, 3), (6, 3)):
        posed = COQA.said(examples[first : index + 1], answers[first:index])
        assert found[index]["prompt"] == posed.prompt[-1].text
        assert answers[index] == alone(subject, posed)


def test_a_story_is_read_once(subject, examples, monkeypatch):
    read = []
    reading, choosing = RowCache.read, decoding.choose

    def counted(self, tokens, last):
        read.append(tokens.shape)
        return reading(self, tokens, last)

    def chosen(*args):
        caching = choosing(*args)
        read.clear()
        return caching

    monkeypatch.setattr(RowCache, "read", counted)
    monkeypatch.setattr(decoding, "choose", chosen)
    run(subject, examples[3:7])
    # Of each prompt after the first one, its new answer and question are read, and nothing of what stood before.
    lengths = [len(subject[2].prompt_ids(example, subject[1])) for example in examples[3:7]]
    assert [width for _, width in read if width > 1] == [lengths[0], *(b - a for a, b in pairwise(lengths))]
