"""Faulty model folders and descriptions: each a PeftkitError that names the file or key at fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import byte_tokenizer, section, write_model
from safetensors.torch import load_file, save_file

from peftkit.errors import PeftkitError
from peftkit.models.load import load


def edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def use_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WHOLE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "not a model folder"]),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "line 1", "JSON"]),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "model_type"]),
    "unknown architecture": (lambda f: edit_config(f, model_type="llamma"), ["config.json", "'llamma'", "'llama'"]),
    "wrong type": (lambda f: edit_config(f, hidden_size="wide"), ["config.json", "hidden_size"]),
    "encoder": (lambda f: edit_config(f, model_type="bert"), ["config.json", "bert is not a decoder"]),
    "encoder-decoder": (lambda f: edit_config(f, model_type="bart"), ["config.json", "encoder-decoder"]),
    "no head": (lambda f: edit_config(f, model_type="vit"), ["config.json", "vit is not a decoder"]),
    "sound": (lambda f: edit_config(f, model_type="voxtral"), ["config.json", "images or sound"]),
    "both ways": (lambda f: edit_config(f, model_type="paligemma"), ["config.json", "both directions"]),
    "own code": (
        lambda f: edit_config(f, model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"}),
        ["config.json", "trust_remote_code"],
    ),
    "quantized": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        ["config.json", "quantized"],
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "no weights"]),
    "pickle": (use_pickle, ["pytorch_model.bin", "run code", "safetensors"]),
    "truncated": (lambda f: truncate(f / "model.safetensors"), ["model.safetensors", "truncated"]),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), ["model.safetensors", "truncated"]),
    "missing key": (
        lambda f: edit_weights(f, lambda t: t.pop("model.norm.weight")),
        ["lacks model.norm.weight", "config.json"],
    ),
    "unexpected key": (
        lambda f: edit_weights(f, lambda t: t.update({"model.extra.weight": torch.ones(2)})),
        ["beyond", "model.extra.weight"],
    ),
    "another shape": (
        lambda f: edit_config(f, intermediate_size=48),
        ["mlp.down_proj.weight", "shape [32, 64]", "[32, 48]"],
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        ["tokenizer", "`model.tokenizer`"],
    ),
    "tokenizer not JSON": (lambda f: (f / "tokenizer.json").write_text("{'"), ["tokenizer.json", "JSON"]),
    "tokenizer damaged": (lambda f: (f / "tokenizer.json").write_text('{"model": 3}'), ["tokenizer", "cannot be read"]),
    "no end of sequence": (
        lambda f: byte_tokenizer(eos_token="").save_pretrained(f),
        ["end-of-sequence", "eos_token"],
    ),
}
SHARDED: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing shard": (lambda f: sorted(f.glob("*-of-*"))[1].unlink(), ["index.json", "model-00002", "missing"]),
    "truncated shard": (lambda f: truncate(sorted(f.glob("*-of-*"))[0]), ["model-00001", "truncated"]),
    "outside": (
        lambda f: edit_index(f, lambda m: m.update({"model.norm.weight": "../other.safetensors"})),
        ["index.json", "'../other.safetensors'", "same folder"],
    ),
    "absolute": (
        lambda f: edit_index(f, lambda m: m.update({"model.norm.weight": "/etc/passwd"})),
        ["index.json", "'/etc/passwd'"],
    ),
    "wrong place": (
        lambda f: edit_index(f, lambda m: m.update({"model.nowhere": min(m.values())})),
        ["index.json", "model-00001", "holds 'model.nowhere'"],
    ),
    "no map": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": 3}'),
        ["index.json", "weight_map"],
    ),
}


def assert_refused(folder: Path, told: list[str]) -> None:
    with pytest.raises(PeftkitError) as caught:
        load(section(folder))
    assert str(folder) in str(caught.value)
    for part in told:
        assert part in str(caught.value)


@pytest.mark.parametrize("fault", WHOLE)
def test_a_faulty_folder_is_refused(fault: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    damage, told = WHOLE[fault]
    damage(folder)
    assert_refused(folder, told)


@pytest.mark.parametrize("fault", SHARDED)
def test_a_faulty_shard_is_refused(fault: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", max_shard_size="20KB")
    damage, told = SHARDED[fault]
    damage(folder)
    assert_refused(folder, told)


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)
    assert_refused(folder, ["96", "embedding"])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./no/such/folder", ["no folder ./no/such/folder", "config.json"]),
        ("bundled/tyni", ["bundled/tyni", "bundled model"]),
        ("no-such-owner/no-such-model", ["no-such-owner/no-such-model", "name its folder"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_way_out(name: str, told: list[str]) -> None:
    with pytest.raises(PeftkitError) as caught:
        load(section(name))
    for part in told:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("init", "told"),
    [
        ({"architecture": "lama"}, ["model.init.architecture", "'lama'", "'llama'"]),
        ({"architecture": "llama", "hidden_sise": 16}, ["'hidden_sise'", "'hidden_size'"]),
        ({"architecture": "llama", "hidden_size": "16"}, ["model.init", "hidden_size"]),
        ({"architecture": "llama", "hidden_size": 30, "num_attention_heads": 4}, ["model.init", "multiple"]),
        ({"architecture": "llama", "hidden_size": 16, "num_attention_heads": 2, "hidden_act": "x"}, ["'x'"]),
        ({"architecture": "bert"}, ["bert is not a decoder"]),
        ({"architecture": "bart"}, ["encoder-decoder"]),
        ({"architecture": "gemma3"}, ["several parts", "gemma3_text"]),
        ({"architecture": "llama", "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 50}, ["95", "50 rows"]),
    ],
)
def test_a_faulty_description_of_random_weights_is_refused(
    init: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PeftkitError) as caught:
        load(section(init={"num_hidden_layers": 1, "intermediate_size": 16} | init, tokenizer=str(tmp_path)))
    for part in told:
        assert part in str(caught.value)


def test_random_weights_need_a_tokenizer() -> None:
    with pytest.raises(PeftkitError, match=r"model\.tokenizer"):
        load(section(init={"architecture": "llama"}))
