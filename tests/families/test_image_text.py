"""Image-text checkpoints with text: the whole model's logits, from its decoder alone, which is all that is read."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from image_text import CHEAP, EACH, write_checkpoint
from model_folders import section
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, core_model_loading
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import zoo
from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import attach
from peftkit.data.example import Example, Turn
from peftkit.data.template import TEMPLATES
from peftkit.errors import PeftkitError
from peftkit.families import FAMILIES, family_of
from peftkit.families.image_text import unread
from peftkit.generation.decoding import generate
from peftkit.generation.settings import Settings
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.ports.embedding import SoftPrompt
from peftkit.recipe import QuantizationSection
from peftkit.tensor_file import TensorFile
from peftkit.training import Silent, log, session, train

IDS = torch.arange(3, 40)[None]
NF4 = QuantizationSection(format="nf4", options={"block_size": 32})
WEIGHTS = "model.safetensors"


def whole_logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("family", EACH)
def test_the_decoder_alone_gives_the_logits_of_the_whole_model(family: str, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, family)
    loaded = load(section(tmp_path))
    assert torch.equal(whole_logits(loaded.model), whole_logits(whole))
    parts = {name: parameter.shape for name, parameter in loaded.module.named_parameters()}
    assert parts.items() < {name: parameter.shape for name, parameter in whole.named_parameters()}.items()
    assert load(section(tmp_path), quantization=NF4).fingerprint == loaded.fingerprint
    assert load(section(tmp_path), weights=False).module.state_dict().keys() == loaded.module.state_dict().keys()


@pytest.mark.parametrize("quantization", [None, NF4], ids=["dense", "nf4"])
@pytest.mark.parametrize("family", EACH)
def test_what_text_never_reaches_is_not_read(
    family: str, quantization: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, family)
    values: list[int] = []
    ours, theirs = TensorFile.read, core_model_loading._materialize_copy

    def read(self: TensorFile, name: str, index: int | None = None) -> torch.Tensor:
        values.append(ours(self, name, index).numel())
        return ours(self, name, index)

    def materialize(tensor: Any, *args: Any, **rest: Any) -> torch.Tensor:
        values.append(theirs(tensor, *args, **rest).numel())
        return theirs(tensor, *args, **rest)

    monkeypatch.setattr(TensorFile, "read", read)
    monkeypatch.setattr(core_model_loading, "_materialize_copy", materialize)
    model = load(section(tmp_path), quantization=quantization).module
    own = load(section(tmp_path), weights=False).module
    assert unread(model)
    assert 0 < sum(values) <= sum(tensor.numel() for tensor in own.state_dict().values())


@pytest.mark.parametrize("quantization", [None, NF4], ids=["dense", "nf4"])
@pytest.mark.parametrize("family", CHEAP)
def test_a_text_part_that_lacks_a_tensor_is_refused_by_its_name(family: str, quantization: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family)
    lost = "layers.1.mlp.up_proj.weight"
    edit(tmp_path, lambda tensors: tensors.pop(next(key for key in tensors if "language" in key and lost in key)))
    with pytest.raises(PeftkitError, match=rf"{tmp_path} lacks model\.language_model\.{lost}"):
        load(section(tmp_path), quantization=quantization)


def test_parts_that_are_not_read_may_be_missing(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, "gemma3")
    edit(tmp_path, lambda tensors: [tensors.pop(key) for key in list(tensors) if "vision" in key])
    assert torch.equal(whole_logits(load(section(tmp_path)).model), whole_logits(whole))


@pytest.mark.parametrize("family", CHEAP)
def test_names_as_the_model_has_them_are_read_too(family: str, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, family)
    names = {key for key in whole.state_dict() if key not in whole.all_tied_weights_keys}
    save_file({key: whole.state_dict()[key].clone() for key in names}, tmp_path / WEIGHTS, {"format": "pt"})
    dense = load(section(tmp_path))
    assert torch.equal(whole_logits(dense.model), whole_logits(whole))
    assert load(section(tmp_path), quantization=NF4).fingerprint == dense.fingerprint


@pytest.mark.parametrize("family", CHEAP)
def test_targets_stay_inside_the_decoder(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family)
    layout = Layout(load(section(tmp_path), weights=False).module)
    assert {site.path.split(".layers.")[0] for site in layout.resolve("*_proj")} == {"model.language_model"}
    tower = "model.visual" if family == "qwen3_5" else "model.vision_tower"
    for target in (f"{tower}.*", f"{tower.removeprefix('model.')}.*"):
        with pytest.raises(PeftkitError, match=rf"'{target}' names {tower}.*text never reaches it"):
            layout.resolve(target)


@pytest.mark.parametrize("family", EACH)
def test_training_starts_from_the_loss_of_the_whole_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)
    whole = write_checkpoint(tmp_path / "model", family)
    texts = ["red-stone", "blue-river", "small", "a-large-old-house", "green-tree", "round-bird"]
    for split in ("train", "validation"):
        files.write_text(tmp_path / "data" / f"{split}.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in texts))
    chosen = recipes.load(
        {
            "model": str(tmp_path / "model"),
            "method": {"lora": {"targets": "*_proj"}},
            "dataset": {"name": "text", "path": str(tmp_path / "data"), "template": "plain"},
            "train": {"batch_examples": 6, "max_length": 64, "device": "cpu", "max_steps": 3, "learning_rate": 0.01},
        }
    )
    train(chosen, tmp_path / "run", observer=Silent())
    steps = [record for record in log.read(tmp_path / "run" / "log.jsonl") if "loss" in record]
    words = load(section(tmp_path / "model"), weights=False).tokenizer
    total = count = 0
    for text in texts:
        row = TEMPLATES["plain"].encode(Example("1", (Turn("text", text),)), words, 64)
        assert row is not None
        logits = whole_logits(whole, torch.tensor([list(row.ids)]))[0, :-1]
        total += float(F.cross_entropy(logits, torch.tensor(list(row.labels)[1:]), reduction="sum"))
        count += sum(label >= 0 for label in list(row.labels)[1:])
    assert steps[0]["loss"] == pytest.approx(total / count, abs=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize("family", EACH)
def test_answers_are_those_of_the_whole_model_without_a_cache(family: str, tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, family)
    loaded = load(section(tmp_path))
    prompts = [[1, 60, 70, 80, 90, 100], [1, 61, 62], [1, 63, 64, 65, 66]]
    answers = generate(loaded.model, loaded.tokenizer, prompts, Settings(max_new_tokens=6))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            assert token == int(whole_logits(whole, torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)
        assert answer.ids


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
def test_every_image_text_configuration_is_taken_or_refused(architecture: str) -> None:
    config = AutoConfig.for_model(architecture)
    reason = FAMILIES["decoder"].refusal(config)
    assert reason is None or reason.startswith(architecture)
    if reason is None:
        assert family_of(config) is FAMILIES["decoder"]


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("family", ["gemma4", "gemma3n_text"])
def test_soft_prompts_have_the_padding_tokens_embeddings_in_the_layers(
    family: str, method: str, tmp_path: Path
) -> None:
    if family.endswith("text"):
        whole: Any = zoo.build(family)
        model: Any = zoo.build(family)
    else:
        whole, model = write_checkpoint(tmp_path, family), load(section(tmp_path)).model
    adaptation = attach(model, [METHODS[method].from_options({"length": 3})])
    (prompt,) = adaptation.adapters()
    ids = IDS.clone()
    ids[:, 1:4] = torch.tensor(adaptation.soft_ids)
    adapted = whole_logits(model, ids)
    ids[:, 1:4] = whole.config.get_text_config().pad_token_id
    text = whole.get_decoder()
    embedded = whole.get_input_embeddings()(ids).detach().clone()
    embedded[:, 1:4] = cast(SoftPrompt, prompt).rows().detach()
    with torch.no_grad():
        given = (ids, None) if "inputs_embeds" in inspect.signature(text.get_per_layer_inputs).parameters else (ids,)
        layers = text.get_per_layer_inputs(*given)
        expected = whole.lm_head(text(inputs_embeds=embedded, per_layer_inputs=layers).last_hidden_state)
    cap = whole.config.get_text_config().final_logit_softcapping
    torch.testing.assert_close(adapted, torch.tanh(expected / cap) * cap if cap else expected)
    assert (adapted - whole_logits(whole, ids)).abs().max() > 0.01
    adaptation.remove()
    assert torch.equal(whole_logits(model), whole_logits(whole))


PARTS = (
    "{% for message in messages %}<{{ message.role }}>{% for part in message.content if part.type == 'text' %}"
    "{{ part.text }}{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("file", ["chat_template.jinja", "chat_template.json", "processor_config.json"])
def test_the_chat_template_comes_from_the_processor(file: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "gemma3")
    (tmp_path / file).write_text(PARTS if file.endswith("jinja") else json.dumps({"chat_template": PARTS}))
    tokenizer = load(section(tmp_path), weights=False).tokenizer
    chat = TEMPLATES["chat"]
    assert chat.suitability(tokenizer)
    example = Example("1", (Turn("user", "Hi"), Turn("assistant", "Hey")))
    assert chat.text(example, tokenizer) == "<user>Hi</s><assistant>Hey</s>"


def test_reopened_by_transformers_it_is_the_same_model(tmp_path: Path) -> None:
    whole = write_checkpoint(tmp_path, "gemma3")
    reopened = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert torch.equal(whole_logits(reopened), whole_logits(whole))
