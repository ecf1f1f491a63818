"""GGUF files as models: what transformers opens, nothing of the file left in it, and every fault told."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from gguf_files import SPECIAL, VOCABULARY, write_gguf
from model_folders import section
from transformers import AutoModelForCausalLM

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.models import gguf_folder, layerwise
from peftkit.models.load import load, tokenizer_of
from peftkit.models.quiet import quiet
from peftkit.recipe import QuantizationSection
from peftkit_cli.main import main

IDS = torch.tensor([[1, 40, 41, 42, 43, 2]])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return write_gguf(tmp_path / "models" / "tiny.gguf")


def by_transformers(file: Path) -> torch.Tensor:
    pytest.importorskip("accelerate")
    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        return model.eval()(input_ids=IDS).logits


def logits(loaded) -> torch.Tensor:
    with torch.no_grad():
        return loaded.model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16", "F32"])
def test_a_file_is_the_model_that_transformers_opens(kind, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", kind)
    loaded = load(section(file))
    assert torch.equal(logits(loaded), by_transformers(file))
    assert loaded.original_dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)


@pytest.mark.parametrize("named", ["file", "folder", "folder and file"])
def test_a_file_is_named_by_itself_or_by_its_folder(named, file):
    if named == "folder and file":
        write_gguf(file.with_name("other.gguf"), "F16")
    asked = {"file": section(file), "folder": section(file.parent)}
    chosen = asked.get(named) or section(file.parent, gguf="tiny.gguf")
    loaded = load(chosen)
    assert torch.equal(logits(loaded), by_transformers(file))
    alone = tokenizer_of(chosen)
    assert alone.get_vocab() == loaded.tokenizer.get_vocab()
    assert (alone.chat_template, alone.padding_side) == (loaded.tokenizer.chat_template, "right")


def test_nothing_of_the_file_is_left_in_the_model(file, tmp_path):
    loaded = load(section(file))
    assert loaded.storage["format"] == "none"
    assert loaded.source is None
    assert "gguf" not in str(loaded.model.config.to_dict()).lower()
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    saved = load(section(tmp_path / "saved"))
    assert saved.fingerprint == loaded.fingerprint
    assert torch.equal(logits(saved), logits(loaded))
    text = "Zwei Grüße,\n  3 + 4 <|im_end|>"
    assert saved.tokenizer(text)["input_ids"] == loaded.tokenizer(text)["input_ids"]
    assert saved.tokenizer.chat_template == loaded.tokenizer.chat_template
    kept = [*(tmp_path / "saved").glob("*.json"), *(tmp_path / "saved").glob("*.jinja")]
    assert kept
    assert not [path.name for path in kept if "gguf" in path.read_text(encoding="utf-8").lower()]


def test_what_transformers_has_to_read_whole_is_left_as_plain(file, monkeypatch):
    streamed = load(section(file))
    monkeypatch.setattr(layerwise, "read", lambda *arguments: None)
    whole = load(section(file))
    assert torch.equal(logits(whole), logits(streamed))
    assert whole.fingerprint == streamed.fingerprint
    assert not hasattr(whole.model.config, "quantization_config")
    assert not hasattr(whole.model, "hf_quantizer")


def test_a_file_is_held_in_halves_or_packed_as_the_folder_of_its_weights_is(file, tmp_path):
    load(section(file)).model.save_pretrained(tmp_path / "saved")
    load(section(file)).tokenizer.save_pretrained(tmp_path / "saved")
    halves = load(section(file, dtype="bfloat16"))
    assert {parameter.dtype for parameter in halves.model.parameters()} == {torch.bfloat16}
    nf4 = QuantizationSection(format="nf4", options={"block_size": 32})
    packed, expected = (load(section(place), quantization=nf4) for place in (file, tmp_path / "saved"))
    assert torch.equal(logits(packed), logits(expected))
    assert packed.fingerprint == expected.fingerprint == halves.fingerprint
    assert packed.storage == expected.storage


def test_without_weights_the_plan_has_the_same_shapes(file):
    outline = load(section(file), device="meta", weights=False)
    shapes = {name: tensor.shape for name, tensor in load(section(file)).model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in outline.model.state_dict().items()} == shapes


def test_the_vocabulary_is_read_once(file, monkeypatch, caplog):
    expected = logits(load(section(file)))

    def fail(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(gguf_folder, "read_header", fail)
        assert torch.equal(logits(load(section(file))), expected)
    (kept,) = (Path(files.cache_folder()) / "opened").glob(f"*/{gguf_folder.HEADER}")
    kept.write_text('["llama", true]')
    with caplog.at_level(logging.WARNING, "peftkit"):
        assert torch.equal(logits(load(section(file))), expected)
    assert f"{kept}: 2 is missing. It is made again." in caplog.text


def test_a_disk_that_keeps_nothing_is_told_and_does_not_stop(file, monkeypatch, caplog, tmp_path):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "taken"))
    with caplog.at_level(logging.WARNING, "peftkit"):
        assert logits(load(section(file))).shape == (1, 6, VOCABULARY)
    assert "is not kept for the next start" in caplog.text


def refusal(asked) -> str:
    with pytest.raises(PeftkitError) as caught:
        load(asked)
    return str(caught.value)


def test_faults_of_a_file_name_it_and_the_way_out(file, monkeypatch):
    whole = file.read_bytes()
    for length in (3, 20, 300, 5000, len(whole) // 2, len(whole) - 40):
        file.write_bytes(whole[:length])
        told = refusal(section(file))
        assert str(file) in told, length
        assert "truncated or damaged" in told or (length == 3 and "no GGUF file" in told), told
    file.write_bytes(b"PK" + whole[2:])
    assert "is no GGUF file: it begins with b'PKUF'" in refusal(section(file))
    write_gguf(file, architecture="llamma")
    assert "'llamma', which transformers cannot open from GGUF. Did you mean 'llama'?" in refusal(section(file))
    write_gguf(file, tokenizer=False)
    assert "holds no tokenizer (tokenizer.ggml.tokens): name one with `model.tokenizer`" in refusal(section(file))
    with monkeypatch.context() as patched:
        found = importlib.util.find_spec
        patched.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
        assert "needs the package gguf: pip install 'peftkit[gguf]'" in refusal(section(file))


def test_a_file_without_a_tokenizer_takes_that_of_another(tmp_path):
    bare = write_gguf(tmp_path / "bare.gguf", tokenizer=False)
    other = write_gguf(tmp_path / "other.gguf")
    loaded = load(section(bare, tokenizer=str(other)))
    assert loaded.tokenizer.eos_token == SPECIAL[2]
    assert torch.equal(logits(loaded), logits(load(section(other))))


def test_folders_of_several_files_and_wrong_names_are_told(file, tmp_path):
    write_gguf(file.with_name("other.gguf"), "F16")
    assert "holds other.gguf, tiny.gguf: name one of them with `model.gguf`" in refusal(section(file.parent))
    assert "has no file tiny.guf. Did you mean 'tiny.gguf'?" in refusal(section(file.parent, gguf="tiny.guf"))
    assert "leave out model.gguf" in refusal(section(file, gguf="tiny.gguf"))
    (tmp_path / "notes.txt").write_text("no model")
    assert "name a .gguf file, or the folder" in refusal(section(tmp_path / "notes.txt"))


def test_the_command_ends_with_the_reason(file, capsys):
    file.write_bytes(file.read_bytes()[:300])
    assert main(["validate", "quickstart", f"model={file}"]) == 2
    assert "truncated or damaged" in capsys.readouterr().err
