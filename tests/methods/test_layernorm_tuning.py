"""Norm tuning by hand: the published number of parameters, and the choice of layers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import attach, count_trained
from peftkit.errors import PeftkitError
from peftkit.export.hf_peft import load
from peftkit.layout import Layout
from peftkit.methods.layernorm_tuning import LayerNormTuning
from peftkit.models.tiny import tiny


def test_the_count_of_llama_2_7b_is_the_closed_form():
    config = AutoConfig.for_model(
        "llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert count_trained(LayerNormTuning(), Layout(model)) == (2 * 32 + 1) * 4096 == 266_240


def test_layers_choose_the_norms_of_these_blocks_alone():
    adaptation = attach(tiny("llama"), [LayerNormTuning(layers="0")])
    assert {key for key, _ in adaptation.parameters()} == {
        "0/own/model.layers.0.input_layernorm.weight",
        "0/own/model.layers.0.post_attention_layernorm.weight",
    }
    with pytest.raises(PeftkitError, match="none of the 2 layers"):
        attach(tiny("llama"), [LayerNormTuning(layers="5")])


def test_a_folder_of_hugging_face_peft_is_read(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"])
    theirs = peft.get_peft_model(tiny("llama"), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ln_tuning" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    theirs.save_pretrained(tmp_path)
    ours, ids = tiny("llama"), torch.arange(3, 15)[None]
    with pytest.raises(PeftkitError, match="post_attention_layernorm"):
        load(tmp_path, ours)
    config.target_modules = {"input_layernorm", "post_attention_layernorm", "norm"}
    theirs = peft.get_peft_model(tiny("llama"), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "ln_tuning" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        theirs.save_pretrained(tmp_path)
        load(tmp_path, ours)
        assert (ours(ids).logits - theirs.eval()(ids).logits).abs().max() <= 1e-5
        assert (tiny("llama")(ids).logits - ours(ids).logits).abs().max() > 0.1
