"""Models from a hub on localhost: what is fetched, a second start without it, and what is refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from model_folders import section, write_model
from small_hub import SmallHub, small_hub

from peftkit import hub as client
from peftkit import machine
from peftkit.errors import PeftkitError
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 40)[None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallHub]:
    with small_hub(monkeypatch, tmp_path / "cache") as serving, quiet():
        yield serving


def weights(hub: SmallHub) -> Counter[str]:
    """Count the weight files that were sent."""
    return Counter(name.rpartition("/")[2] for name in hub.sent if name.endswith(".safetensors"))


def test_shards_alone_are_fetched_once_and_read_offline(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that holds all weights a second time, as consolidated.safetensors, sends each number once."""
    folder = write_model(tmp_path / "model", max_shard_size="20KB")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / "consolidated.safetensors").write_bytes(b"all of it again")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"all of it again")
    hub.add("org/model", folder)
    with torch.no_grad():
        expected = tiny("llama")(IDS).logits
        assert torch.equal(load(section("org/model")).model(IDS).logits, expected)
    assert len(shards) > 1
    assert weights(hub) == Counter(shards)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(load(section("org/model")).model(IDS).logits, expected)
    assert weights(hub) == Counter(shards)


def test_one_file_is_fetched_where_there_is_no_index(hub: SmallHub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "consolidated.safetensors").write_bytes(b"all of it again")
    hub.add("org/model", folder)
    load(section("org/model"), weights=False)
    assert not weights(hub)
    load(section("org/model"))
    assert weights(hub) == Counter(["model.safetensors"])


def test_a_revision_is_the_one_that_is_asked_for(hub: SmallHub, tmp_path: Path) -> None:
    hub.add("org/model", write_model(tmp_path / "llama"))
    hub.add("org/model", write_model(tmp_path / "gpt2", "gpt2"), revision="second")
    assert type(load(section("org/model", revision="second")).model).__name__ == "GPT2LMHeadModel"
    assert type(load(section("org/model")).model).__name__ == "LlamaForCausalLM"
    with pytest.raises(PeftkitError, match="model: org/model on the Hugging Face hub has no revision 'third'"):
        load(section("org/model", revision="third"))


def test_what_is_not_there_or_not_open_is_told(hub: SmallHub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    for name in ("org/gated", "org/private"):
        hub.add(name, folder)
    hub.gated.add("org/gated")
    hub.private.add("org/private")
    with pytest.raises(PeftkitError, match="model: org/gated on the Hugging Face hub asks for consent"):
        load(section("org/gated"))
    for name in ("org/private", "org/nothing"):
        with pytest.raises(PeftkitError, match=f"neither a folder nor a Hugging Face repository named {name}.*Or use"):
            load(section(name))


def test_pickled_weights_alone_are_told_with_what_converts_them(hub: SmallHub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.add("org/model", folder)
    with pytest.raises(PeftkitError, match=r"org/model on the Hugging Face hub holds its weights as pytorch_model.bin"):
        load(section("org/model"))
    assert "org/model/pytorch_model.bin" not in hub.sent
    with pytest.raises(PeftkitError, match=r"(?s)pytorch_model.bin only.*save_pretrained\('NEW'\)"):
        load(section(folder))


def test_a_cut_download_is_told_and_mended_by_the_next_start(hub: SmallHub, tmp_path: Path) -> None:
    hub.add("org/model", write_model(tmp_path / "model"))
    hub.cut.add("model.safetensors")
    with pytest.raises(PeftkitError, match=r"could not be downloaded whole .*the same command goes on"):
        load(section("org/model"))
    hub.cut.clear()
    with torch.no_grad():
        assert torch.equal(load(section("org/model")).model(IDS).logits, tiny("llama")(IDS).logits)


def test_offline_a_copy_that_is_not_whole_is_told(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", write_model(tmp_path / "model"))
    load(section("org/model"), weights=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("org/model", "org/other"):
        with pytest.raises(PeftkitError, match=f"{name}.* is no folder here.*cannot be reached"):
            load(section(name))


def test_a_large_download_is_told_beforehand_and_one_without_room_refused(
    hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_model(tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    hub.add("org/model", folder)
    logger = logging.getLogger("peftkit")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(machine, "free_disk", lambda place: size - 1)
    with pytest.raises(PeftkitError, match="make room, or let HF_HOME name another disk"):
        load(section("org/model"))
    assert not weights(hub)
    monkeypatch.setattr(machine, "free_disk", lambda place: 5_000_000_000)
    monkeypatch.setattr(client, "LARGE", size)
    load(section("org/model"))
    assert {record.getMessage() for record in caplog.records if "is downloaded" in record.getMessage()} == {
        f"model: org/model is downloaded, {size / 1e9:,.1f} GB in 1 file to {tmp_path / 'cache'}, where 5.0 GB are "
        "free."
    }
