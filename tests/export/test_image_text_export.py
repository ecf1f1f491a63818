"""Runs on image-text checkpoints: merged, all else is as it was; exported, the adapter is one of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_text import CHEAP, EACH, PROCESSOR, write_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from peftkit.errors import PeftkitError
from peftkit.export import export, merge, shards
from peftkit.export.packed import quantize
from peftkit.models.quiet import quiet

IDS = torch.arange(3, 40)[None]
NEAR = 1e-4
"""What merging in fp32 may change a logit by; transformers' own Gemma 4 loses 5e-5."""
LORA = {"lora": {"targets": "*_proj"}}
HEAD = {"lora": {"targets": ["*_proj", "head"]}}


def opened(folder: Path) -> Any:
    with quiet():
        return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(path).items()}


def assert_whole(run: Any, base: Path, merged: Path) -> None:
    """Hold that a merged folder is the base but for weights of the decoder, and computes what the run does."""
    before, after = stored(base), stored(merged)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all("_proj" in key and ".layers." in key and "vision" not in key and "visual" not in key for key in changed)
    assert before.keys() == after.keys()
    with torch.no_grad():
        logits = opened(merged)(input_ids=IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=NEAR, rtol=0)


@pytest.mark.parametrize("family", EACH)
def test_merged_it_is_the_whole_checkpoint(family: str, make_run: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", family)
    run = make_run(family, LORA, base=tmp_path / "base")
    report = merge(run.folder, tmp_path / "merged")
    assert report["max_difference"] <= NEAR
    assert report["adapter_effect"] > 0.05
    assert_whole(run, tmp_path / "base", tmp_path / "merged")
    for name in ("config.json", PROCESSOR):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "base" / name).read_bytes()


@pytest.mark.parametrize("family", CHEAP)
def test_in_shards_too(family: str, make_run: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", family, max_shard_size="300KB")
    run = make_run(family, LORA, base=tmp_path / "base")
    merge(run.folder, tmp_path / "merged")
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    assert_whole(run, tmp_path / "base", tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index == json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())["weight_map"]


@pytest.mark.parametrize("family", EACH)
def test_written_by_transformers_it_is_whole_too(
    family: str, make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that files hold in a form of their own are converted by transformers when it saves."""
    monkeypatch.setattr(shards, "rewrite", lambda *_: False)
    write_checkpoint(tmp_path / "base", family)
    run = make_run(family, LORA, base=tmp_path / "base")
    merge(run.folder, tmp_path / "merged")
    assert_whole(run, tmp_path / "base", tmp_path / "merged")


@pytest.mark.parametrize("family", ["gemma3", pytest.param("gemma4", marks=pytest.mark.thorough)])
def test_an_adapter_on_a_tied_head_unties_it_in_the_whole_model(family: str, make_run: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", family)
    run = make_run(family, HEAD, base=tmp_path / "base")
    merge(run.folder, tmp_path / "merged")
    whole = opened(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=IDS).logits, run.logits(), atol=NEAR, rtol=0)
    assert not torch.equal(whole.lm_head.weight, whole.get_input_embeddings().weight)


@pytest.mark.parametrize("family", EACH)
def test_hugging_face_peft_opens_the_adapter_on_the_whole_model(family: str, make_run: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    write_checkpoint(tmp_path / "base", family)
    run = make_run(family, LORA, base=tmp_path / "base")
    export(run.folder, tmp_path / "adapter", "hf-peft")
    with quiet(), torch.no_grad():
        whole = opened(tmp_path / "base")
        adapted = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter").eval()
        logits = adapted(input_ids=IDS).logits
        merged = adapted.merge_and_unload()(input_ids=IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=NEAR, rtol=0)
    torch.testing.assert_close(merged, run.logits(), atol=NEAR, rtol=0)


@pytest.mark.parametrize("into", ["original", "dequantized"])
@pytest.mark.parametrize("family", CHEAP)
def test_a_run_on_packed_weights_is_merged_whole(family: str, into: str, make_run: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", family)
    chosen = {"format": "none", "modules": {"*.down_proj": {"format": "int8"}}}
    run = make_run(family, LORA, base=tmp_path / "base", quantization=chosen)
    merge(run.folder, tmp_path / "merged", into=into)
    before, after = stored(tmp_path / "base"), stored(tmp_path / "merged")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if "_proj" not in key or "layers" not in key)
    with torch.no_grad():
        logits = opened(tmp_path / "merged")(input_ids=IDS).logits
    if into == "dequantized":
        torch.testing.assert_close(logits, run.logits(), atol=NEAR, rtol=0)


def test_a_folder_of_the_packed_decoder_alone_is_not_merged_into_a_whole_model(make_run: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "base", "gemma3")
    quantize(str(tmp_path / "base"), "int8", tmp_path / "packed")
    run = make_run("gemma3", LORA, base=tmp_path / "packed")
    with pytest.raises(PeftkitError, match="holds the decoder of text alone"):
        merge(run.folder, tmp_path / "merged", into="dequantized")
