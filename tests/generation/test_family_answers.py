"""Every decoder is answered with as argmax without a cache gives it, whatever its own code keeps of a text."""

from __future__ import annotations

import json

import pytest
import torch
from letters import Letters
from model_folders import byte_tokenizer

import zoo
from peftkit.adaptation import attach
from peftkit.data.template import choose as template_of
from peftkit.errors import PeftkitError
from peftkit.generation import Settings, caching, decoding, generate, single
from peftkit.generation.asking import Asked
from peftkit.generation.caching import ALONE, OWN, ROWS, WHOLE, choose, difference, whole_texts
from peftkit.generation.decoding import inference
from peftkit.method import METHODS
from peftkit.tasks import TASKS

PROMPTS = [[5, 6, 7], [11], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52], [9, 9], [60, 30, 20]]
NEW = 7
ROUNDING = 3e-3
"""Of the logits' range: Mamba-2 rounds a scan of many tokens otherwise than steps of one, by up to 1e-3 in fp32, and
tokens that are padded or read twice show by 1e-2 and more."""
ENDS = tuple(range(100, 300, 7))
KINDS = {
    "llama": (ROWS, True),
    "mamba": (ROWS, False),
    "jamba": (ROWS, False),
    "falcon_h1": (ROWS, False),
    "lfm2_moe": (ROWS, False),
    "minimax": (OWN, False),
    "rwkv": (ALONE, False),
    "openai-gpt": (WHOLE, False),
}
"""Of each kind one: attention alone, states alone, both in turn, both in a layer, convolutions, a cache of its own,
one that is right for a row alone, and none."""
OPEN = {"doge": {"keep_window_size": 64}}
"""Settings without which nothing says what is right: of equal tokens, Doge's window keeps any."""
UNBUILT = ("mistral4", "molmo2")
"""Families of images and text that are no decoder of text by themselves."""
SWEPT = [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.thorough)
    for name in zoo.made()
    if name not in UNBUILT
]


@pytest.fixture(scope="module", params=SWEPT)
def model(request):
    return zoo.build(request.param, **OPEN.get(request.param, {}))


@pytest.fixture
def logits(monkeypatch):
    """The logits of each prompt's steps."""
    seen: dict[int, list[torch.Tensor]] = {}
    advance = single.Single.advance

    def watched(self, texts, logits, ids):
        for text, row in zip(texts, logits, strict=True):
            seen.setdefault(text.number, []).append(row.clone())
        return advance(self, texts, logits, ids)

    monkeypatch.setattr(single.Single, "advance", watched)
    return seen


def alone(model, prompt, new=NEW):
    """Decode one prompt without a cache; returns the tokens, the logits of each and the least lead of a token."""
    ids, steps = list(prompt), []
    with torch.no_grad():
        for _ in range(new):
            steps.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1])
            ids.append(int(steps[-1].argmax()))
    top = torch.stack(steps).topk(2).values
    return ids[len(prompt) :], torch.stack(steps), float((top[:, 0] - top[:, 1]).min())


def check(model, logits, prompts=PROMPTS, batch_size=4):
    """Hold that a batch is answered as each prompt is alone, in its logits, and in its tokens but for ties."""
    logits.clear()
    found = generate(model, Letters(), prompts, Settings(max_new_tokens=NEW, ends=()), batch_size=batch_size)
    for number, (prompt, answer) in enumerate(zip(prompts, found, strict=True)):
        ids, steps, lead = alone(model, prompt)
        assert lead < 1e-5 or answer.ids == ids
        if answer.ids == ids:
            assert difference(torch.stack(logits[number]), steps) < ROUNDING


def test_a_batch_equals_argmax_without_a_cache(model, logits):
    check(model, logits)


def test_beams_equal_those_without_a_cache(model, monkeypatch):
    settings = Settings(max_new_tokens=NEW, ends=ENDS, num_beams=3, length_penalty=0.8)
    found = generate(model, Letters(), PROMPTS, settings, batch_size=3)
    monkeypatch.setattr(decoding, "choose", lambda *_: whole_texts(model))
    assert [answer.ids for answer in found] == [
        answer.ids for answer in generate(model, Letters(), PROMPTS, settings, batch_size=1)
    ]


def test_an_adapter_changes_nothing_of_that(model, logits):
    """Last of the tests of a model, since the adapter stays."""
    options = {"rank": 1, "targets": ["linear"]}
    try:
        adaptation = attach(model, [METHODS["lora"].from_options(options)])
    except PeftkitError as error:
        pytest.skip(str(error))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    check(model.eval(), logits)


@pytest.mark.parametrize("name", KINDS)
def test_the_quickest_way_that_holds_is_taken(name):
    model = zoo.build(name)
    with inference(model):
        way = choose(model, PROMPTS, 1)
    assert (way.name, way.mixed) == KINDS[name]


@pytest.mark.parametrize("name", ["jamba", "mamba", "minimax", "rwkv", "openai-gpt"])
def test_rows_leave_and_enter(name):
    """Answers end at different tokens, so that the batch of two is refilled and its rows change places."""
    # With tied weights, random models of states alone repeat the last token.
    model = zoo.build(name, tie_word_embeddings=False)
    prompts = [[*prompt, last] for prompt in PROMPTS for last in (70, 71)]
    whole = [alone(model, prompt)[0] for prompt in prompts]
    ends = (whole[0][0], whole[3][2], whole[7][4])
    found = generate(model, Letters(), prompts, Settings(max_new_tokens=NEW, ends=ends), batch_size=3)
    lengths = set()
    for ids, answer in zip(whole, found, strict=True):
        at = next((at for at, id in enumerate(ids) if id in ends), NEW)
        assert (answer.ids, answer.finished) == (ids[:at], at < NEW)
        lengths.add(at)
    assert len(lengths) > 1


@pytest.mark.parametrize("name", ["llama", "jamba", "minimax", "rwkv", "openai-gpt"])
def test_the_second_turn_goes_on_from_the_first(name, tmp_path):
    said = {
        "questions": [{"input_text": f"aa {turn}?", "turn_id": turn + 1} for turn in range(2)],
        "answers": [{"input_text": f"r{turn}", "turn_id": turn + 1} for turn in range(2)],
    }
    stories = [{"source": "mctest", "id": story, "story": story, **said} for story in ("It was.", "No one.")]
    path = tmp_path / "coqa-dev-v1.0.json"
    path.write_text(json.dumps({"data": stories}))
    coqa, model, tokenizer = TASKS["coqa"], zoo.build(name), byte_tokenizer()
    examples, template = coqa.read_file(path), template_of("plain", tokenizer)
    settings = Settings(max_new_tokens=4, ends=())
    asked = Asked(model, tokenizer, coqa, examples, template, settings, "predicted")
    answers = asked.answer(2)
    for conversation in asked.conversations:
        for turn, index in enumerate(conversation):
            prompt = asked.prompt_ids(index, asked.posed(conversation, turn))
            assert answers[index].ids == alone(model, prompt, 4)[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_positions_that_turn_otherwise_in_long_texts(batch, logits):
    """Prompts on both sides of the length from which on it is so, and those that reach it while they are answered."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = zoo.build("phi3", original_max_position_embeddings=16, rope_parameters=rope)
    prompts = [*PROMPTS, list(range(60, 90)), list(range(60, 85)), list(range(60, 76)), list(range(50, 67))]
    check(model, logits, prompts, batch)
    # The beginning of two long prompts is short by itself.
    check(model, logits, [[*range(60, 70), *range(other, other + 15)] for other in (100, 130)], batch)


class TestWhatDoesNotHold:
    """Models whose code does what no kind of cache says, and what is done about them."""

    @pytest.fixture
    def llama(self):
        caching._tell.cache_clear()
        return zoo.build("llama")

    def spoilt(self, model, monkeypatch, spoil):
        forward = model.forward

        def changed(input_ids=None, attention_mask=None, past_key_values=None, **rest):
            output = forward(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, **rest
            )
            spoil(output, attention_mask, past_key_values)
            return output

        monkeypatch.setattr(model, "forward", changed)

    def chosen(self, model):
        with inference(model):
            return choose(model, PROMPTS, 1).name

    def test_padding_that_is_seen(self, llama, logits, monkeypatch, caplog):
        def spoil(output, mask, cache):
            if mask is not None:
                output.logits[:, :, 5] += 3.0 * (mask == 0).sum(1)[:, None]

        self.spoilt(llama, monkeypatch, spoil)
        assert self.chosen(llama) == OWN
        check(llama, logits)
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert told == [f"LlamaForCausalLM generates with {OWN}, which is slower."]

    def test_a_cache_that_forgets(self, llama, logits, monkeypatch):
        def spoil(output, mask, cache):
            if cache is not None:
                output.logits[:, :, 5] += 0.05 * cache.get_seq_length()

        self.spoilt(llama, monkeypatch, spoil)
        assert self.chosen(llama) == WHOLE
        check(llama, logits)

    def test_a_cache_of_another_class_is_refused_by_the_model(self, llama, monkeypatch):
        def spoil(output, mask, cache):
            if type(cache).__name__ == "RowCache":
                raise ValueError("this model uses a cache of its own")

        self.spoilt(llama, monkeypatch, spoil)
        assert self.chosen(llama) == OWN

    def test_a_full_memory_is_no_reason(self, llama, monkeypatch):
        def spoil(output, mask, cache):
            raise torch.OutOfMemoryError("full")

        self.spoilt(llama, monkeypatch, spoil)
        with pytest.raises(torch.OutOfMemoryError):
            self.chosen(llama)

    def test_equally_likely_nothing(self):
        nothing = torch.tensor([[float("nan"), 1.0, -torch.inf, 3.0]])
        assert difference(nothing, nothing) == 0.0
        assert difference(torch.tensor([[0.0, 1.0, -torch.inf, 3.0]]), nothing) == torch.inf
        assert difference(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 2.0]])) == 1.0
