"""Prompt tuning by hand: concatenation, a textual prompt, counts."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, check_methods, load_adapter, save_adapter
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.methods import prompt_tuning
from peftkit.methods.prompt_tuning import PromptTuning, frequent
from peftkit.models.tiny import tiny
from peftkit.ports.embedding import SoftPrompt

IDS = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])


def prompted(model, adaptation):
    soft = torch.tensor([adaptation.soft_ids] * 2)
    with torch.no_grad():
        return model(input_ids=torch.cat([soft, IDS], 1)).logits[:, soft.shape[1] :]


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_the_prompt_stands_in_front_of_the_embeddings(architecture):
    model = tiny(architecture)
    embedded = model.get_input_embeddings()(IDS).detach()
    adaptation = attach(model, [PromptTuning(length=3, init="random")])
    prompt = adaptation.parameters()[0][1]
    result = prompted(model, adaptation)
    with torch.no_grad():
        inputs = torch.cat([prompt.expand(2, -1, -1), embedded], 1)
        expected = tiny(architecture)(inputs_embeds=inputs).logits[:, 3:]
    assert (result - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_a_prompt_from_the_vocabulary_is_a_text_in_front(architecture):
    """Gemma multiplies its embeddings by a constant: the prompt starts on that scale."""
    model = tiny(architecture)
    table = model.get_input_embeddings()(torch.arange(96)).detach()
    adaptation = attach(model, [PromptTuning(length=4)])
    prompt = adaptation.parameters()[0][1]
    words = (prompt.unsqueeze(1) == table).all(-1).nonzero()[:, 1]
    assert len(words) == len(set(words.tolist())) == 4
    result = prompted(model, adaptation)
    with torch.no_grad():
        expected = tiny(architecture)(input_ids=torch.cat([words.expand(2, -1), IDS], 1)).logits[:, 4:]
    assert (result - expected).abs().max() <= 1e-5


class Letters:
    """A tokenizer of one token a letter behind a special one, which is left out when asked."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(letter) - 90 for letter in text]}


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize(("length", "ids"), [(3, [7, 8, 9]), (7, [7, 8, 9, 7, 8, 9, 7]), (2, [7, 8])])
def test_a_prompt_from_a_text_is_the_text_in_front(architecture, length, ids, tmp_path):
    """Repeated or cut to the length; the saved adapter holds the ids and opens without a tokenizer."""
    model = tiny(architecture)
    method = PromptTuning(length=length, init="text", text="abc").with_tokenizer(Letters())
    assert method.text_ids == (7, 8, 9)
    adaptation = attach(model, [method])
    result = prompted(model, adaptation)
    with torch.no_grad():
        expected = tiny(architecture)(input_ids=torch.cat([torch.tensor([ids] * 2), IDS], 1)).logits[:, length:]
    assert (result - expected).abs().max() <= 1e-5
    save_adapter(adaptation, tmp_path / "adapter", {"name": architecture})
    loaded = tiny(architecture)
    again = load_adapter(loaded, tmp_path / "adapter", None)
    assert again.methods == (method,)
    assert torch.equal(prompted(loaded, again), result)


def test_the_tokenizer_is_asked_for_a_text_alone():
    for method in (PromptTuning(), PromptTuning(init="random"), PromptTuning(init="text", text="a", text_ids=(5,))):
        assert method.with_tokenizer(Letters()) is method


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"init": "text"}, "prompt-tuning: init is text, and there is none: set text"),
        ({"init": "text", "text": ""}, "prompt-tuning: text is '', which has no tokens"),
        ({"text": "abc"}, "init is vocabulary: set init to text"),
        ({"init": "text", "text_ids": [96]}, "text_ids has 96, .* 96 rows"),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_its_key(options, told):
    method = PromptTuning.from_options(options).with_tokenizer(Letters())
    with pytest.raises(PeftkitError, match=told):
        check_methods(tiny("llama"), [method])


def test_a_text_without_its_ids_is_refused():
    with pytest.raises(PeftkitError, match="with_tokenizer"):
        attach(tiny("llama"), [PromptTuning(init="text", text="abc")])


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_hugging_face_peft_computes_the_same_without_a_first_token(architecture):
    """That library puts the prompt in front of everything, here it stands behind a beginning-of-sequence token."""
    peft = pytest.importorskip("peft")
    model = tiny(architecture)
    adaptation = attach(model, [PromptTuning(length=3, init="random")])
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(tiny(architecture), config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(adaptation.parameters()[0][1])
        expected = theirs(input_ids=IDS).logits[:, 3:]
    assert (prompted(model, adaptation) - expected).abs().max() <= 1e-5


def test_random_starts_in_its_bounds_and_long_prompts_repeat_words():
    adaptation = attach(tiny("llama"), [PromptTuning(length=100, init="random")])
    prompt = adaptation.parameters()[0][1]
    assert prompt.dtype == torch.float32
    assert 0.45 < prompt.abs().max() <= 0.5
    assert attach(tiny("llama"), [PromptTuning(length=100)]).trainable == 100 * 32


def test_an_empty_prompt_is_refused():
    with pytest.raises(PeftkitError, match="length"):
        PromptTuning.from_options({"length": 0})


ROWS = [Encoded([1, 50, 50, 60], [-100, 50, 50, 60]), Encoded([1, 60, 50], [-100, 60, 50])]
DATA = [collate(ROWS, 0)]
STARTING = ("prompt-tuning", "aprompt", "dept", "idpg", "prefix-propagation", "smop", "spot", "xprompt")


def started(name, batches, seed=0, **options):
    """Return the ids of the words of which a method's rows are the embeddings, -1 for what is none."""
    adaptation = attach(tiny("gemma"), [METHODS[name].from_options(options)])
    table = tiny("gemma").get_input_embeddings()(torch.arange(96)).detach()
    torch.manual_seed(seed)
    adaptation.prepare(batches)
    (rows,) = [a.drawn for a in adaptation.adapters() if isinstance(a, SoftPrompt) and a.drawn is not None]
    same = (rows.unsqueeze(1) == table).all(-1)
    return torch.where(same.any(1), same.float().argmax(1), -1).tolist()


def test_the_frequent_tokens_are_counted_without_padding_and_prompts(monkeypatch):
    # 50 stands there three times, 1 and 60 twice; padding and ids of soft rows do not count.
    assert frequent(DATA, 96).tolist() == [50, 1, 60]
    assert frequent([collate([Encoded([96, 97, 5], [-100, -100, 5])], 0)], 96).tolist() == [5]
    assert frequent([], 96).tolist() == []
    monkeypatch.setattr(prompt_tuning, "FREQUENT", 2)
    assert frequent(DATA, 96).tolist() == [50, 1]
    monkeypatch.setattr(prompt_tuning, "EXAMPLES", 2)
    assert frequent([*DATA, collate([Encoded([7] * 9, [7] * 9)], 0)], 96).tolist() == [50, 1]


@pytest.mark.parametrize("name", [*STARTING, "transferable-prompt-tuning"])
def test_with_data_a_prompt_starts_from_its_frequent_tokens(name):
    words = started(name, DATA)
    assert set(words) == {1, 50, 60}
    assert words == started(name, DATA)
    assert len({tuple(started(name, DATA, seed)) for seed in range(4)}) > 1


def test_other_starts_and_those_without_data_stay():
    without = started("prompt-tuning", [])
    assert set(without) - {1, 50, 60}
    assert set(started("prompt-tuning", DATA, init="random")) == {-1}
    assert started("prompt-tuning", DATA, init="text", text="ab", text_ids=(7, 8), length=3) == [7, 8, 7]


def test_a_prompt_that_was_carried_over_is_not_drawn_anew(tmp_path):
    source = attach(tiny("gemma"), [PromptTuning(length=3, init="random")])
    run = tmp_path / "run"
    save_adapter(source, run / "adapter", {"name": "gemma"})
    for name, options in (("spot", {"sources": (str(run),)}), ("transferable-prompt-tuning", {"source": str(run)})):
        adaptation = attach(tiny("gemma"), [METHODS[name].from_options(options).with_tokenizer(Letters())])
        adaptation.prepare(DATA)
        assert torch.equal(adaptation.parameters()[0][1], source.parameters()[0][1])
