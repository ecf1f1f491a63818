"""Adapters of experts leave as merged weights, packed and not, and as adapters of Hugging Face peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from draw import marked, some
from test_hf_peft_families import opens_and_merges
from transformers import AutoModelForCausalLM

import zoo
from peftkit.errors import PeftkitError
from peftkit.export import export, merge
from peftkit.export.hf_peft import load as load_hf_peft
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.models.samples import logits as on_samples
from peftkit.quantization.stack import PackedStack
from peftkit.recipe import ModelSection

IDS = torch.arange(3, 40)[None]
EXPERTS = {"lora": {"rank": 2, "targets": "experts"}}
BOTH = {"lora": {"rank": 2, "targets": ["o", "experts"], "rank_pattern": {"*.down_proj": 3}}}
NF4 = {"format": "nf4", "block_size": 16}
FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")


def logits(folder: Path) -> torch.Tensor:
    with quiet(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model(IDS).logits


CASES = [(family, BOTH) for family in [*FAMILIES, "llama4_text"]] + [("jetmoe", EXPERTS), ("mixtral", EXPERTS)]


@pytest.mark.parametrize(("family", "method"), marked(CASES, some("experts", CASES, 3)))
def test_peft_opens_and_merges_pairs_of_experts(family: str, method: Any, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, method, base=base)
    opens_and_merges(AutoModelForCausalLM, base, run, tmp_path / "adapter")


def test_what_peft_trained_on_experts_is_read(tmp_path: Path):
    peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
    base = zoo.build("mixtral")
    names = ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=names)
    theirs = peft.get_peft_model(zoo.build("mixtral"), config)
    with quiet(), torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
        theirs.save_pretrained(tmp_path / "theirs")
        load_hf_peft(tmp_path / "theirs", base)
        expected = theirs.eval()(IDS).logits
        assert (base(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("method", [{"ia3": {}}, {"dora": {"rank": 2, "targets": "experts"}}])
def test_what_peft_has_no_form_of_is_refused(method: Any, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", "mixtral")
    run = make_run("mixtral", method, base=base)
    with pytest.raises(PeftkitError, match=r"has adapters of the experts at .*plain low-rank pairs alone .*merged"):
        export(run.folder, tmp_path / "adapter", "hf-peft")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_the_original_weights_is_merged(family: str, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, BOTH, base=base)
    merge(run.folder, tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), run.logits(), atol=1e-4, rtol=0)


PACKED = [
    (family, method)
    for family in ("mixtral", "gpt_oss")
    for method in (BOTH, {"dora": {"rank": 2, "targets": ["o", "experts"]}}, "ia3")
]


@pytest.mark.parametrize(("family", "method"), marked(PACKED, some("packed", PACKED, 2)))
def test_a_run_on_packed_stacks_is_merged_every_way(family: str, method: Any, make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", family)
    run = make_run(family, method, base=base, quantization=NF4)
    assert any(isinstance(module, PackedStack) for module in run.base.module.modules())
    merge(run.folder, tmp_path / "dequantized", into="dequantized")
    torch.testing.assert_close(logits(tmp_path / "dequantized"), run.logits(), atol=1e-4, rtol=0)
    told = merge(run.folder, tmp_path / "original")
    assert told["max_difference"] <= 1e-4 * told["scale"] < told["trained_max_difference"]
    again = merge(run.folder, tmp_path / "packed", into="dequantized", requantize=True, bound=2.0)
    packed = load(ModelSection(name=str(tmp_path / "packed")))
    assert any(isinstance(module, PackedStack) for module in packed.module.modules())
    difference = on_samples(packed.model, packed.tokenizer) - on_samples(run.base.model, run.base.tokenizer)
    assert again["requantized_max_difference"] == pytest.approx(float(difference.abs().max()), rel=1e-3)


def test_a_start_that_answers_packing_is_merged(make_run: Any, tmp_path: Path):
    base = zoo.write(tmp_path / "base", "mixtral")
    method = {"lora": {"rank": 4, "targets": ["o", "experts"], "init": "loftq"}}
    run = make_run("mixtral", method, base=base, quantization={"format": "nf2", "block_size": 16})
    merge(run.folder, tmp_path / "merged", into="dequantized")
    torch.testing.assert_close(logits(tmp_path / "merged"), run.logits(), atol=1e-4, rtol=0)
