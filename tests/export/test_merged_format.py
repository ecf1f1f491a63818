"""`merged`: plain transformers opens the folder and computes what the adapted model computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import write_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit import tensor_file
from peftkit.adaptation import DESCRIPTION, TENSORS
from peftkit.errors import PeftkitError
from peftkit.export import FORMATS, export, merge
from peftkit.models import samples
from peftkit.models.quiet import quiet
from peftkit.models.tiny import ARCHITECTURES, tiny

IDS = torch.arange(3, 40)[None]
LINEAR = {"lora": {"targets": "linear"}}
HEAD = {"lora": {"targets": ["q", "v", "head"], "bias": "all"}}


def opened(folder: Path, **keys: Any) -> Any:
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, **keys).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", [LINEAR, HEAD, "full"], ids=["linear", "head", "full"])
def test_merged_logits_equal_adapted_logits(architecture: str, method: Any, make_run: Any, tmp_path: Path) -> None:
    run = make_run(architecture, method)
    report = merge(run.folder, tmp_path / "merged")
    with torch.no_grad():
        logits = opened(tmp_path / "merged", dtype=torch.float32)(IDS).logits
        untrained = tiny(architecture)(IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=1e-5, rtol=0)
    assert (logits - untrained).abs().max() > 0.5
    assert report["max_difference"] <= 1e-5
    assert report["adapter_effect"] > 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "gemma"])
def test_an_adapter_on_a_tied_head_unties_it_and_leaves_the_embedding(
    architecture: str, make_run: Any, tmp_path: Path
) -> None:
    run = make_run(architecture, HEAD)
    assert run.base.model.config.tie_word_embeddings
    merge(run.folder, tmp_path / "merged")
    merged = opened(tmp_path / "merged")
    assert not merged.config.tie_word_embeddings
    embedding, original = merged.get_input_embeddings().weight, tiny(architecture).get_input_embeddings().weight
    assert torch.equal(embedding, original)
    assert not torch.equal(merged.lm_head.weight, original)


def test_a_tied_model_stays_tied_where_the_head_has_no_adapter(make_run: Any, tmp_path: Path) -> None:
    merge(make_run("gpt2", LINEAR).folder, tmp_path / "merged")
    merged = opened(tmp_path / "merged")
    assert merged.lm_head.weight is merged.get_input_embeddings().weight


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_weights_keep_their_stored_dtype_and_are_rounded_once(
    dtype: torch.dtype, step: float, make_run: Any, tmp_path: Path
) -> None:
    run = make_run("llama", {"lora": {"targets": ["q"]}}, dtype)
    report = merge(run.folder, tmp_path / "merged")
    assert report["dtype"] == str(dtype).removeprefix("torch.")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    state = tensor_file.read_tensors(run.folder / "adapter" / TENSORS)
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    for name, tensor in merged.items():
        if "q_proj" not in name:
            assert torch.equal(tensor, before[name])
            continue
        site = name.removesuffix(".weight")
        a, b = state[f"0/{site}/A"].double(), state[f"0/{site}/B"].double()
        exact = before[name].double() + 2.0 * (b @ a)  # alpha 16 / rank 8
        assert ((tensor.double() - exact).abs() <= step * exact.abs() + 1e-6).all()


def test_the_folder_has_the_tokenizer_and_the_generation_settings_of_the_base(make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", LINEAR)
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": false}')
    merge(run.folder, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["temperature"] == 0.5
    words = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert words("name[X]")["input_ids"] == run.base.tokenizer("name[X]")["input_ids"]
    assert words.pad_token == "<pad>"
    for path in (tmp_path / "merged").glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_a_base_held_in_float16_is_recognised(make_run: Any, tmp_path: Path) -> None:
    merge(make_run("llama", {"lora": {"targets": ["v"]}}, dtype="float16").folder, tmp_path / "merged")


def other_base(run: Path) -> None:
    with quiet():
        tiny("llama", seed=9).save_pretrained(run.parent / "base")


def not_finite(run: Path) -> None:
    path = run / "adapter" / TENSORS
    tensors = load_file(path)
    tensors["0/model.layers.1.self_attn.v_proj/A"][0, 0] = float("nan")
    save_file(tensors, path)


def not_finished(run: Path) -> None:
    (run / "adapter" / DESCRIPTION).unlink()


def truncated(run: Path) -> None:
    path = run / "adapter" / TENSORS
    path.write_bytes(path.read_bytes()[:-9])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other base": (other_base, "another base model"),
    "not finite": (not_finite, r"v_proj/A holds NaN"),
    "not finished": (not_finished, "did not finish"),
    "not a run": (lambda run: (run / "recipe.yaml").unlink(), "not a run folder"),
    "truncated": (truncated, "truncated or damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FORMATS.names())
def test_a_refused_export_leaves_nothing(name: str, fault: str, make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", LINEAR).folder
    damage, told = FAULTS[fault]
    damage(run)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(PeftkitError, match=told):
        export(run, tmp_path / "out", name)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_folder_that_holds_something_is_never_written_to(name: str, make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", LINEAR).folder
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(PeftkitError, match="not empty"):
        export(run, tmp_path / "out", name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_an_output_that_is_a_link_is_followed_and_has_the_modes_of_the_umask(make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", LINEAR)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    before = os.umask(0o077)
    try:
        merge(run.folder, tmp_path / "link")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    written = [tmp_path / "target", *(tmp_path / "target").rglob("*")]
    assert {path.name for path in written} >= {"config.json", "tokenizer.json", "model.safetensors"}
    for path in written:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_merge_that_changes_the_logits_is_refused(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("llama", LINEAR).folder
    monkeypatch.setattr("peftkit.ports.linear.Delta.merge", lambda self, weight, bias: (weight, bias))
    with pytest.raises(PeftkitError, match="differ from the trained model's"):
        merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_that_cannot_merge_says_so(make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("llama", LINEAR).folder
    monkeypatch.setattr("peftkit.methods.lora.LoRA.mergeable", False)
    with pytest.raises(PeftkitError, match="'lora' cannot be merged"):
        merge(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(PeftkitError, match="'hf-peft'"):
        export(tmp_path, tmp_path / "out", "hf_peft")


@pytest.mark.parametrize("value", [0.02, float("nan"), float("inf")])
def test_the_comparison_refuses_a_difference_beyond_the_bound(value: float) -> None:
    trained = torch.tensor([[1.0, -100.0]])
    assert samples.compare(trained + 0.009, trained, 1e-4, "it") == {
        "max_difference": pytest.approx(0.009, rel=1e-3),
        "scale": 100.0,
        "bound": pytest.approx(0.01),
    }
    with pytest.raises(PeftkitError):
        samples.compare(trained + value, trained, 1e-4, "it")


def test_the_written_folder_is_a_model_for_a_new_run(make_run: Any, tmp_path: Path) -> None:
    from model_folders import section

    from peftkit.models.load import load

    run = make_run("llama", LINEAR)
    merge(run.folder, tmp_path / "merged")
    again = load(section(tmp_path / "merged"))
    assert again.fingerprint != load(section(write_model(tmp_path / "plain"))).fingerprint
    with torch.no_grad():
        torch.testing.assert_close(again.model(IDS).logits, run.logits(), atol=1e-5, rtol=0)


def test_the_registry_does_not_hide_the_functions_of_the_package() -> None:
    import peftkit.export

    FORMATS.names()
    assert peftkit.export.merge is merge
    assert peftkit.export.export is export


def test_the_files_of_the_base_are_rewritten_one_by_one_and_keep_what_was_not_adapted(
    make_run: Any, tmp_path: Path
) -> None:
    run = make_run("llama", {"lora": {"targets": ["v"]}}, torch.bfloat16)
    base = tmp_path / "base"
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    norm = "model.norm.weight"
    tensors[norm] = tensors[norm].float()
    parts = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
    for name, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, base / name, {"format": "pt"})
    index = {key: name for name, keys in parts.items() for key in keys}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    merge(run.folder, tmp_path / "merged")
    told = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert told["weight_map"] == index
    files = [load_file(tmp_path / "merged" / name) for name in parts]
    assert told["metadata"]["total_size"] == sum(tensor.nbytes for file in files for tensor in file.values())
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, keys in parts.items():
        written = load_file(tmp_path / "merged" / name)
        assert sorted(written) == sorted(keys)
        for key, tensor in written.items():
            assert tensor.dtype == tensors[key].dtype
            assert torch.equal(tensor, tensors[key]) == ("v_proj" not in key), key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_configuration_tells_the_dtype_of_the_weights(
    dtype: torch.dtype, quantization: str, make_run: Any, tmp_path: Path
) -> None:
    run = make_run("qwen3", LINEAR, stored=dtype, quantization=quantization)
    merge(run.folder, tmp_path / "merged")
    stored = {
        tensor.dtype for path in (tmp_path / "merged").glob("*.safetensors") for tensor in load_file(path).values()
    }
    assert stored == {dtype}
    assert opened(tmp_path / "merged", dtype="auto").dtype == dtype
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
