"""Loading a model: what was saved comes back, in the promised dtype, quietly and without side effects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_folders import byte_tokenizer, section, write_model

from peftkit.errors import PeftkitError
from peftkit.models import build
from peftkit.models import folder as folders
from peftkit.models.load import load, tokenizer_of
from peftkit.models.quiet import quiet
from peftkit.models.tiny import ARCHITECTURES, tiny
from peftkit.models.tokenizer import load_tokenizer

IDS = torch.arange(3, 40)[None]
INIT = {"architecture": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_model_comes_back_with_equal_logits(architecture: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", architecture)
    loaded = load(section(folder))
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, tiny(architecture)(IDS).logits)
    assert not loaded.model.training
    assert loaded.source == folder
    assert loaded.tokenizer.decode(loaded.tokenizer("name[X]")["input_ids"]) == "name[X]"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_weights_the_model_is_on_the_meta_device(architecture: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", architecture)
    (folder / "model.safetensors").write_bytes(b"not read at all")
    loaded = load(section(folder), weights=False)
    shapes = {name: parameter.shape for name, parameter in loaded.model.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in tiny(architecture).named_parameters()}
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}
    assert loaded.fingerprint is None


def test_dtype_auto_is_fp32_on_the_cpu_and_a_named_one_is_kept(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", torch.bfloat16)
    assert {p.dtype for p in load(section(folder)).model.parameters()} == {torch.float32}
    assert {p.dtype for p in load(section(folder, dtype="bfloat16")).model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(section(folder), dtype=torch.float16).model.parameters()} == {torch.float16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stored_dtype_is_read_from_the_files(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "llama", dtype, max_shard_size="20KB")
    paths = folders.shards(folder)
    assert len(paths) > 1
    assert folders.stored_dtype(paths) == dtype


def test_a_model_in_shards_equals_the_same_in_one_file(tmp_path: Path) -> None:
    parts = load(section(write_model(tmp_path / "parts", "llama", max_shard_size="20KB")))
    whole = load(section(write_model(tmp_path / "whole", "llama")))
    assert parts.fingerprint == whole.fingerprint


def test_random_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = load(section(init=INIT, tokenizer=str(tmp_path)))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    again = load(section(init=INIT, tokenizer=str(tmp_path)))
    other = load(section(init=INIT, tokenizer=str(tmp_path), seed=1))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.source is None
    assert first.model.config.vocab_size == 96
    assert first.model.config.eos_token_id == 2


def test_random_weights_in_bf16_are_the_fp32_ones_rounded(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    full = load(section(init=INIT, tokenizer=str(tmp_path)))
    half = load(section(init=INIT, tokenizer=str(tmp_path), dtype="bfloat16"))
    for exact, rounded in zip(full.model.parameters(), half.model.parameters(), strict=True):
        assert torch.equal(exact.bfloat16(), rounded)


def test_padding_is_a_token_of_its_own_or_else_end_of_sequence(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "own")
    assert load_tokenizer(section(tokenizer=str(tmp_path / "own"), init=INIT)).pad_token == "<pad>"
    tokenizer = byte_tokenizer(eos_token="</s>")
    tokenizer.save_pretrained(tmp_path / "none")
    text = (tmp_path / "none" / "tokenizer.json").read_text().replace('"<pad>"', '"<unused>"')
    (tmp_path / "none" / "tokenizer.json").write_text(text)
    assert load_tokenizer(section(tokenizer=str(tmp_path / "none"), init=INIT)).pad_token == "</s>"


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path / "model", "gpt2")
    capfd.readouterr()
    load(section(folder))
    load(section(folder), weights=False)
    assert capfd.readouterr() == ("", "")


def test_quiet_puts_verbosity_back() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (50, False)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_bundled_model_is_small_and_reads_every_text() -> None:
    folder = folders.find("bundled/tiny")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000
    loaded = load(section("bundled/tiny"))
    text = "Zwölf Grüße: 你好, здравствуй 🙂\x00\n"
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert loaded.tokenizer.unk_token_id not in ids
    assert loaded.tokenizer.decode(ids) == text


def test_a_tokenizer_alone_is_the_one_that_comes_with_the_model(tmp_path, monkeypatch):
    byte_tokenizer().save_pretrained(tmp_path)
    sections = [section("bundled/tiny"), section("bundled/tiny", tokenizer=str(tmp_path))]
    sections.append(section(init=INIT, tokenizer=str(tmp_path)))
    expected = [load(one).tokenizer.get_vocab() for one in sections]
    for name in ("build", "on_meta", "outline"):
        monkeypatch.setattr(build, name, lambda *given, **named: pytest.fail("a model is built"))
    assert [tokenizer_of(one).get_vocab() for one in sections] == expected
    with pytest.raises(PeftkitError, match=r"name one with `model\.tokenizer`"):
        tokenizer_of(section(init=INIT))
