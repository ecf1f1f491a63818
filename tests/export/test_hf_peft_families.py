"""LoRA on layers that are no attention opens in Hugging Face peft with equal logits, and merges there."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import zoo
from peftkit.errors import PeftkitError
from peftkit.export import export
from peftkit.models.quiet import quiet

IDS = torch.arange(3, 40)[None]
METHODS = {
    "defaults": {"lora": {"rank": 2}},
    "linear": {"lora": {"rank": 2, "targets": "linear", "alpha_pattern": {"mlp": 3.0}}},
}
FAMILIES = {
    "lfm2": "convolutions and attention",
    "qwen3_5_text": "linear attention and attention",
    "jamba": "state spaces, attention and experts",
    "deepseek_v3": "latent attention and experts",
}


@pytest.mark.parametrize(
    ("family", "method"),
    [pair for pair in product(FAMILIES, METHODS) if pair != ("deepseek_v3", "linear")],
)
def test_peft_opens_and_merges_it(family: str, method: str, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    opens_and_merges(AutoModelForCausalLM, base, make_run(family, METHODS[method], base=base), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("lfm2", ["conv.in_proj", "conv.out_proj", "q_proj", "w2"]),
        ("qwen3_5_text", ["in_proj_qkv", "in_proj_z", "in_proj_a", "out_proj", "k_proj", "down_proj"]),
        ("jamba", ["in_proj", "x_proj", "out_proj", "v_proj", "up_proj"]),
        ("deepseek_v3", ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]),
    ],
)
def test_peft_opens_modules_of_any_name(family: str, targets: list[str], make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, {"lora": {"rank": 2, "targets": targets}}, base=base)
    opens_and_merges(AutoModelForCausalLM, base, run, tmp_path / "adapter")


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_what_peft_would_put_onto_experts_is_refused(family: str, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, METHODS["linear"], base=base)
    with pytest.raises(PeftkitError, match=r"onto the experts of this .*--format merged"):
        export(run.folder, tmp_path / "adapter", "hf-peft")


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3"])
def test_an_adapter_of_the_text_decoder_opens_on_the_whole_model(family: str, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, METHODS["linear"], base=base)
    opens_and_merges(AutoModelForImageTextToText, base, run, tmp_path / "adapter")


def opens_and_merges(loader: Any, base: Path, run: Any, folder: Path) -> None:
    """Hold that `peft` gives our logits with the exported adapter, and with it merged into the base."""
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    report = export(run.folder, folder, "hf-peft")
    expected = run.logits()
    bound = 1e-5 * expected.abs().max().item()
    with quiet(), torch.no_grad():
        model = peft.PeftModel.from_pretrained(loader.from_pretrained(base, dtype=torch.float32), folder).eval()
        assert (model(input_ids=IDS).logits - expected).abs().max() <= bound
        merged = model.merge_and_unload()
        assert (merged(input_ids=IDS).logits - expected).abs().max() <= bound
    assert report["adapter_effect"] > 0.01 * report["scale"]
