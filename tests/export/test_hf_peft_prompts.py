"""`hf-peft` for prompts: the Hugging Face library opens what we write, and we what it writes, or a reason is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from peftkit.adaptation import attached
from peftkit.errors import PeftkitError
from peftkit.export import export
from peftkit.export.hf_peft import load as load_adapter
from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 40)[None]
PROMPTS = [
    {"prompt-tuning": {"length": 4}},
    {"p-tuning": {"length": 4, "encoder": "none"}},
    {"p-tuning": {"length": 4, "encoder": "mlp", "hidden": 8}},
]
SHIFTED = [
    {"p-tuning-v2": {"length": 4, "shift": True, "deviation": 1.0}},
    {"prefix-tuning": {"length": 4, "shift": True, "projection": 8}},
]
GATED = {"llama-adapter": {"length": 4}}


def adapted(model: Any) -> torch.Tensor:
    """Return the logits at the text, with the soft prompt in front where there is one."""
    soft = torch.tensor([attached(model).adaptations["default"].soft_ids], dtype=torch.long)
    with torch.no_grad():
        return model(torch.cat([soft, IDS], 1)).logits[:, soft.shape[1] :]


def plain(architecture: str) -> torch.Tensor:
    with torch.no_grad():
        return tiny(architecture)(IDS).logits


def randomise(model: Any, word: str) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if word in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [(name, method) for name in ("llama", "gemma", "gpt2") for method in [*PROMPTS, *SHIFTED]]
    + [("llama", GATED), ("mistral", {"llama-adapter": {"length": 4, "top": 1}})],
)
def test_hugging_face_peft_opens_the_folder_with_equal_logits(
    architecture: str, method: Any, make_run: Any, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    run = make_run(architecture, method)
    report = export(run.folder, tmp_path / "adapter", "hf-peft")
    with quiet(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        logits = theirs(IDS).logits[:, -IDS.shape[1] :]
    expected = adapted(run.base.model)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    assert (expected - plain(architecture)).abs().max() > 1e-3
    assert report["adapter_effect"] > 1e-3
    assert report["max_difference"] <= 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_a_prompt_of_hugging_face_peft_is_read_with_equal_logits(kind: str, architecture: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    options = {} if kind == "PromptTuningConfig" else {"encoder_hidden_size": 8}
    with quiet(), torch.no_grad():
        config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)
        theirs = peft.get_peft_model(tiny(architecture), config).eval()
        randomise(theirs, "prompt_encoder")
        theirs.save_pretrained(tmp_path)
        expected = theirs(IDS).logits[:, 4:]
    ours = tiny(architecture)
    assert load_adapter(tmp_path, ours).trainable == 4 * 32
    torch.testing.assert_close(adapted(ours), expected, atol=1e-5, rtol=0)
    assert (expected - plain(architecture)).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("projected", [False, True])
def test_a_prefix_of_hugging_face_peft_is_read_with_equal_logits(
    projected: bool, architecture: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    with quiet(), torch.no_grad():
        sizes = {"num_virtual_tokens": 4, "encoder_hidden_size": 8, "prefix_projection": projected}
        theirs = peft.get_peft_model(tiny(architecture), peft.PrefixTuningConfig(task_type="CAUSAL_LM", **sizes)).eval()
        randomise(theirs, "prompt_encoder")
        theirs.save_pretrained(tmp_path)
        expected = theirs(IDS).logits
    ours = tiny(architecture)
    load_adapter(tmp_path, ours)
    torch.testing.assert_close(adapted(ours), expected, atol=1e-5, rtol=0)
    assert (expected - plain(architecture)).abs().max() > 0.1


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gated_prompt_of_hugging_face_peft_is_read_with_equal_logits(layers: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    with quiet(), torch.no_grad():
        config = peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=layers, task_type="CAUSAL_LM")
        theirs = peft.get_peft_model(tiny("llama"), config).eval()
        randomise(theirs, "adaption_")
        theirs.save_pretrained(tmp_path)
        expected = theirs(IDS).logits
    ours = tiny("llama")
    load_adapter(tmp_path, ours)
    torch.testing.assert_close(adapted(ours), expected, atol=1e-5, rtol=0)
    assert (expected - plain("llama")).abs().max() > 0.1


@pytest.mark.parametrize("method", PROMPTS[:2])
def test_a_prompt_behind_a_first_token_is_not_written(method: Any, make_run: Any, tmp_path: Path) -> None:
    run = make_run("llama", method)
    path = tmp_path / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(PeftkitError, match=r"begins texts with '<s>'.*in front of it.*from the run folder"):
        export(run.folder, tmp_path / "adapter", "hf-peft")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("architecture", "method", "told"),
    [
        ("llama", {"prefix-tuning": {"length": 4}}, "'prefix-tuning' leaves the positions of the text as they are"),
        ("llama", {"p-tuning-v2": {"length": 4}}, "'p-tuning-v2' leaves the positions of the text as they are"),
        ("llama", {"p-tuning-v2": {"shift": True, "layers": "1"}}, "a prefix of one size in every layer"),
        (
            "llama",
            {"llama-adapter": {"variant": "official"}},
            "variant paper; .* llama model with variant official",
        ),
        ("gpt2", GATED, "for llama and mistral models.*; this is a gpt2 model"),
    ],
)
def test_what_would_be_something_else_there_is_refused_with_the_reason(
    architecture: str, method: Any, told: str, make_run: Any, tmp_path: Path
) -> None:
    run = make_run(architecture, method)
    with pytest.raises(PeftkitError, match=f"{told}.*generate and evaluate from the run folder") as refusal:
        export(run.folder, tmp_path / "adapter", "hf-peft")
    assert "merged" not in str(refusal.value)
    assert "no counterpart" not in str(refusal.value)
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("kind", "tensors", "told"),
    [
        ("PROMPT_TUNING", {"prompt_embeddings": torch.ones(4, 31)}, r"of the shape \[4, 31\], and \[length, 32\]"),
        ("P_TUNING", {}, "'prompt_embeddings' is missing"),
        ("PROMPT_TUNING", {"base_model.head": torch.ones(1)}, "'base_model.head' is not part of a soft prompt"),
        ("PREFIX_TUNING", {"prompt_embeddings": torch.ones(4, 63)}, r"of the shape \[4, 63\], and \[length, 64\]"),
        ("PREFIX_TUNING", {"base_model.head": torch.ones(1)}, "'base_model.head' is not part of a prefix"),
        ("ADAPTION_PROMPT", {"base_model.model.x.gate": torch.ones(1)}, "not part of a LLaMA-Adapter"),
        ("ADAPTION_PROMPT", {}, "lacks model.layers.0.self_attn/P|lacks 0/model.layers.0.self_attn/P"),
    ],
)
def test_a_faulty_folder_is_refused(kind: str, tensors: Any, told: str, tmp_path: Path) -> None:
    sizes = {"adapter_len": 4, "adapter_layers": 2} if kind == "ADAPTION_PROMPT" else {"num_virtual_tokens": 4}
    config = {"peft_type": kind, **sizes}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = tiny("llama")
    with pytest.raises(PeftkitError, match=told):
        load_adapter(tmp_path, model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain("llama"))
