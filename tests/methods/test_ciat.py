"""CIAT by hand, and what the key of an example decides: in packed rows, shared beginnings, answers, runs and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from ids_for_text import Ends

from peftkit import evaluate, load, train
from peftkit.adaptation import attach
from peftkit.data.batches import by_prompt, collate
from peftkit.data.encode import Encoded, mark
from peftkit.data.example import question
from peftkit.engine.engine import Arrangement, choose
from peftkit.errors import PeftkitError
from peftkit.evaluation import answer
from peftkit.export import FORMATS
from peftkit.generation import Settings, generate
from peftkit.generation.single import forbid_repeats
from peftkit.keys import KEY, MOST, Keys, marked
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.methods.ciat import Ciat
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of
from peftkit.recipe import Recipe

LANGUAGES = ("de", "fr", "es")
TEXT = list(range(20, 40))


def keyed(architecture: str = "llama", **options):
    """Attach three sets of small adapters, none of them at its start."""
    model = tiny(architecture).eval()
    adaptation = attach(model, [Ciat(**{"keys": LANGUAGES, "bottleneck": 6, **options})])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model, adaptation


def logits(model, *rows: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor(rows)).logits


def test_each_token_passes_through_the_set_of_its_row_behind_a_norm_of_its_own():
    model, adaptation = keyed()
    site = Layout(model).hidden("mlp")[0]
    adapter, x = adaptation.parts[0].adapters[site.id], torch.randn(2, 4, site.inputs)
    with torch.no_grad():
        model(input_ids=torch.tensor([marked(TEXT[:4], 2), marked(TEXT[:4], 0)]))
        added = adapter(torch.zeros_like, x)
    state = {key.removeprefix(f"0/{site.id}/"): tensor for key, tensor in adaptation.state().items()}
    for row, number in enumerate((2, 0)):
        own = {key.removeprefix(f"sets.{number}."): value for key, value in state.items()}
        normed = F.layer_norm(x[row], (site.inputs,), own["norm.weight"], own["norm.bias"])
        expected = F.relu(normed @ own["D"].T + own["b"]) @ own["U"].T + own["c"]
        torch.testing.assert_close(added[row], expected)


def test_the_sets_stand_at_the_embedding_and_beside_every_block_and_one_set_needs_no_key():
    model = tiny("llama")
    layout = Layout(model)
    parts = [site.id for kind in ("attention", "mlp") for site in layout.hidden(kind)]
    assert [site.id for site in Ciat().sites(layout)] == [layout.embedding().id, *parts]
    width, blocks = layout.embedding().outputs, len(parts) + 1
    single = attach(model, [Ciat(bottleneck=6)])
    assert single.trainable == blocks * (2 * width + 2 * 6 * width + 6 + width)
    single.remove()
    assert attach(model, [Ciat(bottleneck=6, keys=LANGUAGES)]).trainable == 3 * single.trainable


@pytest.mark.parametrize("number", range(3))
def test_a_key_touches_the_tensors_of_its_own_set_alone(number):
    model, adaptation = keyed()
    ids = torch.tensor([marked(TEXT, number)] * 2)
    model(input_ids=ids).logits.square().sum().backward()
    moved = {key for key, parameter in adaptation.parameters() if parameter.grad is not None}
    assert moved == {key for key, _ in adaptation.parameters() if f"/sets.{number}." in key}


def test_rows_of_different_keys_share_no_beginning_and_are_computed_as_each_alone():
    model, _ = keyed()
    rows = [Encoded(TEXT, [-100] * 10 + TEXT[10:]) for _ in range(4)]
    rows = [mark(row, number) for row, number in zip(rows, (0, 1, 1, 2), strict=True)]
    engine, notices = choose(model, rows, 0, torch.device("cpu"), Arrangement())
    assert not notices
    packed = engine.pack(collate(rows, 0))
    assert packed.tree is not None
    assert len(packed.tree.ids) == 3 * len(TEXT)
    with engine.running(packed), torch.no_grad():
        found = engine.logits(packed)
    alone = {number: logits(model, marked(TEXT, number))[0] for number in range(3)}
    assert (alone[0] - alone[1]).abs().max() > 1e-2
    paths = enumerate(packed.tree.rows)
    at = {int(place): (row, position) for row, places in paths for position, place in enumerate(places)}
    for place, one in zip(packed.sources.tolist(), found, strict=True):
        row, position = at[place]
        torch.testing.assert_close(one, alone[(0, 1, 1, 2)[row]][position], atol=1e-5, rtol=1e-5)
    assert by_prompt(rows) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 2])
def test_answers_of_prompts_with_different_keys_are_those_of_each_alone(architecture, beams):
    model, _ = keyed(architecture)
    prompts = [marked(TEXT[: 12 - 3 * (number % 2)], number) for number in (0, 1, 2, 0)] + [marked(TEXT[:12], 1)]
    settings = Settings(max_new_tokens=5, ends=(), num_beams=beams)
    found = generate(model, Ends(), prompts, settings, batch_size=3)
    for prompt, answered in zip(prompts, found, strict=True):
        assert answered.ids == generate(model, Ends(), [prompt], settings)[0].ids
        if beams == 1:
            ids = list(prompt)
            while len(ids) < len(prompt) + len(answered.ids):
                ids.append(int(logits(model, ids)[0, -1].argmax()))
            assert answered.ids == ids[len(prompt) :]
    assert len({tuple(answered.ids) for answered in found}) > 2


def test_an_n_gram_that_begins_a_keyed_prompt_is_not_repeated():
    scores = forbid_repeats(torch.zeros(1, 10), torch.tensor([marked([5, 6, 9, 5], 0)]), 2)
    assert scores[0].isinf().nonzero().flatten().tolist() == [6]


def test_a_row_without_a_key_is_refused_and_the_bare_base_passes_keys_by():
    model, adaptation = keyed()
    with pytest.raises(PeftkitError, match=r"chosen by 'key', and a text has none. Allowed: de, fr, es"):
        logits(model, TEXT)
    with adaptation.disabled():
        assert torch.equal(logits(model, marked(TEXT, 1)), logits(model, TEXT))
    with context_of(model).with_keys(torch.tensor([2, 0])):
        told = logits(model, TEXT, TEXT)
    assert torch.equal(told, logits(model, marked(TEXT, 2), marked(TEXT, 0)))


def test_keys_are_few_and_different():
    with pytest.raises(PeftkitError, match="keys: 'de' is there twice"):
        Ciat(keys=("de", "fr", "de"))
    with pytest.raises(PeftkitError, match=f"found {MOST + 1}; allowed: at most {MOST}"):
        Ciat(keys=tuple(map(str, range(MOST + 1))))
    ids = [(1 << 22) - 1, 3]
    assert max(marked(ids, MOST - 1)) < 1 << 31


def test_two_methods_have_the_same_keys():
    with pytest.raises(PeftkitError, match="choose adapters by different keys"):
        attach(tiny("llama"), [Ciat(keys=("de", "fr")), Ciat(keys=("de", "es"))])


def test_it_cannot_be_merged():
    _, adaptation = keyed()
    with pytest.raises(PeftkitError, match="cannot be merged"):
        adaptation.merge_()


def test_keys_say_what_is_wrong_with_an_example():
    keys = Keys("language", LANGUAGES)
    assert keys.number_in({"language": "es", "other": 1}) == 2
    with pytest.raises(PeftkitError, match=r"'language' is 'fra', .* Did you mean 'fr'. Allowed: de, fr, es"):
        keys.number_in({"language": "fra"})
    with pytest.raises(PeftkitError, match=r"no 'language', .* its fields are languages. Did you mean 'languages'"):
        keys.number_in({"languages": "es"})
    assert question("1", "a", "b", language="de").meta == {"language": "de"}


WORDS = {"de": "Haus Baum Hund", "fr": "maison arbre chien"}


def data(folder: Path, name: str, **changes: str | None) -> Path:
    records = [
        {"prompt": f"say {number}", "completion": words, "lang": key} | changes
        for number in range(8)
        for key, words in WORDS.items()
    ]
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def recipe(folder: Path, **dataset) -> dict:
    data(folder, "train.jsonl")
    data(folder, "test.jsonl")
    given = {"name": "jsonl", "path": str(folder), "columns": {KEY: "lang"}, **dataset}
    return {
        "model": "bundled/tiny",
        "method": {"ciat": {"keys": ["de", "fr"], "bottleneck": 16}},
        "dataset": given,
        "train": {"max_steps": 60, "batch_examples": 8, "learning_rate": 0.01},
        "generation": {"max_new_tokens": 12},
    }


def test_a_run_learns_each_key_by_itself_and_answers_by_it(tmp_path):
    (folder := tmp_path / "data").mkdir()
    run = train(recipe(folder), tmp_path / "run")
    found = {key: answer(Path(run), "say 3", key=key) for key in WORDS}
    assert found == WORDS
    report = evaluate(run)
    assert report["examples"] == 16
    assert set(report["scores"].values()) == {1.0}, report["scores"]
    model, tokenizer = cast("tuple[Any, Any]", load(run))
    asked = [[{"role": "user", "content": "say 3"}]] * 2
    ids = tokenizer.apply_chat_template(asked, return_tensors="pt", return_dict=True, add_generation_prompt=True)
    said = model.generate(**ids, key=["fr", "de"])
    texts = tokenizer.batch_decode(said[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == [WORDS["fr"], WORDS["de"]]
    for key, error in ((None, "give generate key=…, one of de, fr"), ("fra", "Did you mean 'fr'")):
        with pytest.raises(PeftkitError, match=error):
            model.generate(**ids, key=key)
    with pytest.raises(PeftkitError, match="1 keys for 2 prompts"):
        model.generate(**ids, key=["de"])
    for form, reason in (("merged", "cannot be merged"), ("hf-peft", "has no counterpart in Hugging Face peft")):
        with pytest.raises(PeftkitError, match=f"ciat.*{reason}"):
            FORMATS[form](Path(run), tmp_path / form)
    with pytest.raises(PeftkitError, match=r"give one with the prompt .*--key de.*Allowed: de, fr"):
        answer(Path(run), "say 3")
    with pytest.raises(PeftkitError, match=r"the prompt: 'key' is 'it', .* Allowed: de, fr"):
        answer(Path(run), "say 3", key="it")


def test_faults_are_told_with_the_line(tmp_path):
    (folder := tmp_path / "data").mkdir()
    given = recipe(folder)
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for line, error in (
        (lines[2].replace('"de"', '"den"'), "train.jsonl:3: 'key' is 'den', .* Did you mean 'de'. Allowed: de, fr"),
        (lines[2].replace('"de"', "null"), "train.jsonl:3: there is no 'key', by which adapters are chosen"),
        (lines[2].replace('"de"', "[1]"), "line 3: 'key' is a list, and text or a whole number is wanted"),
    ):
        (folder / "train.jsonl").write_text("".join([*lines[:2], line, *lines[3:]]), encoding="utf-8")
        with pytest.raises(PeftkitError, match=error):
            train(given, tmp_path / "run")


def test_a_key_for_a_run_that_has_none_is_refused(tmp_path):
    (folder := tmp_path / "data").mkdir()
    run = train(recipe(folder) | {"method": "lora", "train": {"max_steps": 1, "batch_examples": 2}}, tmp_path / "run")
    with pytest.raises(PeftkitError, match="the key 'de' is given, and this model has no adapters that are chosen by"):
        answer(Path(run), "say 3", key="de")
    assert Recipe.load(recipe(folder)).method[0].name in METHODS
