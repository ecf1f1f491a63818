"""`hf-peft`: the Hugging Face library opens what we write, and we open what it writes, with equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import section
from transformers import AutoModelForCausalLM

from peftkit.errors import PeftkitError
from peftkit.export import export
from peftkit.export.hf_peft import load as load_adapter
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.models.tiny import ARCHITECTURES, tiny

IDS = torch.arange(3, 40)[None]
PATTERNS = {"lora": {"targets": "linear", "rank": 4, "rank_pattern": {"o": 2}, "alpha_pattern": {"q": 3.0}}}
STABILISED = {"lora": {"targets": ["q", "v", "head"], "rank_stabilised": True}}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", [PATTERNS, STABILISED], ids=["patterns", "stabilised"])
def test_hugging_face_peft_opens_the_folder_with_equal_logits(
    architecture: str, method: Any, make_run: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    run = make_run(architecture, method)
    report = export(run.folder, tmp_path / "adapter", "hf-peft")
    with quiet(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        logits = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=1e-5, rtol=0)
    assert report["adapter_effect"] > 0.5
    assert report["max_difference"] <= 1e-5
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stabilised", [False, True])
def test_a_folder_of_hugging_face_peft_is_read_with_equal_logits(
    architecture: str, stabilised: bool, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    with quiet(), torch.no_grad():
        config = peft.LoraConfig(
            r=4, lora_alpha=9, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=stabilised
        )
        theirs = peft.get_peft_model(tiny(architecture), config)
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
        theirs.save_pretrained(tmp_path)
        expected = theirs.eval()(IDS).logits
        ours = tiny(architecture)
        load_adapter(tmp_path, ours)
        torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-5, rtol=0)
        assert (expected - tiny(architecture)(IDS).logits).abs().max() > 0.1


BIASED = {"lora": {"targets": ["q", "v"], "rank": 4, "bias": "all"}}
ADAPTED = {"lora": {"targets": ["q", "up"], "rank": 4, "bias": "adapted"}}
WHOLE = [{"lora": {"targets": ["q"], "rank": 4}}, {"full": {"targets": ["embed_tokens", "lm_head", "*norm"]}}]
SCALED = ["ia3", {"full": {"targets": "lm_head"}}]


@pytest.mark.parametrize(
    ("architecture", "method", "told"),
    [
        ("gpt2", BIASED, {"bias": "all"}),
        ("phi", BIASED, {"bias": "all"}),
        ("gpt2", ADAPTED, {"bias": "lora_only"}),
        ("llama", WHOLE, {"bias": "none"}),
        ("llama", SCALED, {"modules_to_save": ["lm_head"]}),
    ],
)
def test_what_is_trained_beside_an_adapter_travels(
    architecture: str, method: Any, told: Any, make_run: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    run = make_run(architecture, method)
    export(run.folder, tmp_path / "adapter", "hf-peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {key: config[key] for key in told} == told
    with quiet(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        logits = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(input_ids=IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=1e-5, rtol=0)
    again = load(section(tmp_path / "base"))
    load_adapter(tmp_path / "adapter", again.model)
    with torch.no_grad():
        torch.testing.assert_close(again.model(IDS).logits, run.logits(), atol=1e-5, rtol=0)


def test_a_whole_module_that_shares_its_weight_does_not_travel(make_run: Any, tmp_path: Path) -> None:
    run = make_run("gpt2", [{"lora": {"targets": ["q"]}}, {"full": {"targets": "wte"}}])
    with pytest.raises(PeftkitError, match=r"transformer\.wte shares its weight.*--format merged"):
        export(run.folder, tmp_path / "adapter", "hf-peft")


def test_there_and_back_gives_the_same_logits(make_run: Any, tmp_path: Path) -> None:
    run = make_run("gpt2", PATTERNS)
    export(run.folder, tmp_path / "adapter", "hf-peft")
    base = load(section(tmp_path / "base"))
    load_adapter(tmp_path / "adapter", base.model)
    with torch.no_grad():
        torch.testing.assert_close(base.model(IDS).logits, run.logits(), atol=1e-5, rtol=0)


def test_a_local_base_is_named_by_its_folder(make_run: Any, tmp_path: Path) -> None:
    export(make_run("llama", PATTERNS).folder, tmp_path / "adapter", "hf-peft")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "base").resolve())


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("full", "'full' has no counterpart in Hugging Face peft.*--format merged"),
        ([{"lora": {"targets": ["q"]}}, {"lora": {"targets": ["v"]}}], "several methods.*--format merged"),
        (
            [{"lora": {"targets": ["q"]}}, {"full": {"targets": ["lm_head"]}}, {"full": {"targets": ["k_proj"]}}],
            "several",
        ),
    ],
    ids=["no counterpart", "several", "several wholes"],
)
def test_what_the_format_cannot_hold_is_refused_with_advice(
    method: Any, told: str, make_run: Any, tmp_path: Path
) -> None:
    with pytest.raises(PeftkitError, match=told):
        export(make_run("phi", method).folder, tmp_path / "adapter", "hf-peft")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "no adapter_config.json"),
        ("{", "adapter_config.json, line 1"),
        ({"peft_type": "POLY"}, "POLY.*lora"),
        ({}, "peft_type is None"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_qalora": True}, "use_qalora"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": 8}, "adapter_model.safetensors"),
    ],
)
def test_a_faulty_folder_is_refused_and_the_model_as_before(config: Any, told: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "adapter_config.json").write_text(text)
    save_file({"base_model.model.nowhere.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    model = tiny("llama")
    with pytest.raises(PeftkitError, match=told):
        load_adapter(tmp_path, model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, tiny("llama")(IDS).logits)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "LORA", "r": "4", "lora_alpha": 8}, "r: found '4'"),
        ({"peft_type": "LORA", "r": 0, "lora_alpha": 8}, "r: found 0"),
        ({"peft_type": "LORA", "r": 4}, "lora_alpha is missing"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": None}, "lora_alpha is missing"),
        ({"peft_type": "VERA"}, "r is missing"),
        ({"peft_type": "LOKR", "r": 4}, "alpha is missing"),
        ({"peft_type": {}}, "peft_type: found an empty mapping"),
    ],
)
def test_a_configuration_of_other_types_is_refused(config: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(PeftkitError, match=rf"adapter_config\.json: {told}"):
        load_adapter(tmp_path, tiny("llama"))
