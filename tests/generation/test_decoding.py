"""Batched decoding with a cache equals one-by-one decoding without one, and transformers' own."""

from __future__ import annotations

import pytest
from letters import PROMPTS, Letters, alone, by_transformers
from model_folders import byte_tokenizer

from peftkit.errors import PeftkitError
from peftkit.generation import Settings, generate
from peftkit.generation.stopping import Stopping
from peftkit.models.tiny import ARCHITECTURES, tiny

NEW = 12


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny(request.param)


def test_a_batch_with_a_cache_equals_one_by_one_without(model):
    found = generate(model, Letters(), PROMPTS, Settings(max_new_tokens=NEW, ends=()), batch_size=4)
    assert [answer.ids for answer in found] == [alone(model, prompt, NEW, ()) for prompt in PROMPTS]
    assert not any(answer.finished for answer in found)


def test_answers_that_end_early_are_cut_there_and_leave_the_others_alone(model):
    whole = [alone(model, prompt, NEW, ()) for prompt in PROMPTS]
    ends = tuple({whole[0][3], whole[1][1], whole[2][6]})
    found = generate(model, Letters(), PROMPTS, Settings(max_new_tokens=NEW, ends=ends), batch_size=6)
    for answer, ids in zip(found, whole, strict=True):
        at = next((at for at, id in enumerate(ids) if id in ends), None)
        assert answer.ids == (ids if at is None else ids[:at])
        assert answer.finished == (at is not None)


def test_greedy_answers_equal_those_of_transformers(model):
    found = generate(model, Letters(), PROMPTS, Settings(max_new_tokens=NEW), batch_size=6)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert (answer.ids, answer.finished) == by_transformers(model, prompt, (2,), max_new_tokens=NEW)


def test_what_is_drawn_does_not_depend_on_the_batch():
    model = tiny("llama")
    settings = Settings(max_new_tokens=NEW, do_sample=True, temperature=1.5, top_k=40, top_p=0.95, seed=3, ends=())
    together = generate(model, Letters(), PROMPTS, settings, batch_size=6)
    apart = generate(model, Letters(), PROMPTS, settings, batch_size=1)
    assert [answer.ids for answer in together] == [answer.ids for answer in apart]
    other = generate(model, Letters(), PROMPTS, Settings(**{**settings.__dict__, "seed": 4}), batch_size=6)
    assert [answer.ids for answer in together] != [answer.ids for answer in other]


def test_equal_prompts_are_drawn_apart():
    settings = Settings(max_new_tokens=NEW, do_sample=True, temperature=2.0, ends=())
    first, second = generate(tiny("llama"), Letters(), [[5, 6], [5, 6]], settings)
    assert first.ids != second.ids


def test_a_stop_text_is_cut_off_and_ends_the_answer():
    model = tiny("gpt2")
    whole = generate(model, Letters(), [[5, 6, 7]], Settings(max_new_tokens=NEW, ends=()))[0].text
    stop = whole[4:6]
    answer = generate(model, Letters(), [[5, 6, 7]], Settings(max_new_tokens=NEW, stop=(stop,), ends=()))[0]
    assert answer.text == whole[: whole.index(stop)]
    assert answer.finished
    assert len(answer.ids) == whole.index(stop) + 2


def test_a_special_token_as_a_stop_text_ends_the_answer():
    tokenizer = byte_tokenizer()
    token = tokenizer.eos_token
    stopping = Stopping.of(tiny("llama"), tokenizer, Settings(max_new_tokens=NEW, stop=(token, "x"), ends=()))
    assert (stopping.ends, stopping.texts) == ({tokenizer.eos_token_id}, ("x",))
    assert stopping.ended([7, tokenizer.eos_token_id])
    with pytest.raises(PeftkitError, match=r"generation\.stop: .* holds the special token"):
        Stopping.of(tiny("llama"), tokenizer, Settings(max_new_tokens=NEW, stop=(token + "x",)))


def test_a_prompt_beyond_the_context_is_refused_with_its_number():
    with pytest.raises(PeftkitError, match=r"prompt 2 has 120 tokens.*128 positions \(1 of 2"):
        generate(tiny("llama"), Letters(), [[5], [5] * 120], Settings(max_new_tokens=9))
    assert len(generate(tiny("llama"), Letters(), [[5] * 120], Settings(max_new_tokens=8, ends=()))[0].ids) == 8


def test_an_empty_prompt_begins_with_the_first_special_token():
    model = tiny("llama")
    found = generate(model, Letters(), [[]], Settings(max_new_tokens=NEW, ends=()))
    assert found[0].ids == alone(model, [1], NEW, ())


def test_the_model_is_left_in_the_mode_it_had():
    model = tiny("llama")
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    generate(model, Letters(), [[5]], Settings(max_new_tokens=2))
    assert [module.training for module in model.modules()] == modes


def test_progress_is_told_answer_by_answer_and_equal_prompts_count_each():
    told = []
    generate(
        tiny("llama"),
        Letters(),
        [*PROMPTS, PROMPTS[0]],
        Settings(max_new_tokens=2),
        batch_size=4,
        on_progress=lambda *counts: told.append(counts),
    )
    assert told[-1] == (7, 7)
    assert len(told) == 6
    assert told == sorted(told)
