"""P-tuning by hand: the encoders' sizes, and the prompt that is left after training."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, count_trained, load_adapter, save_adapter
from peftkit.layout import Layout
from peftkit.methods.p_tuning import PTuning
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_encoder_and_its_size_are_those_of_hugging_face_peft(encoder):
    """Same weights, same prompt; their LSTM reads the prompt as one batch of its rows in order."""
    peft = pytest.importorskip("peft")
    adaptation = attach(tiny("llama"), [PTuning(length=5, encoder=encoder, hidden=6)])
    adapter = next(iter(adaptation.parts[0].adapters.values()))
    config = peft.PromptEncoderConfig(
        peft_type="P_TUNING",
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        token_dim=32,
        num_transformer_submodules=1,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
        encoder_num_layers=2,
        encoder_dropout=0.0,
    )
    theirs = peft.PromptEncoder(config)
    with torch.no_grad():
        theirs.embedding.weight.copy_(adapter.E)
        head = theirs.mlp_head
        head.load_state_dict(adapter.head.state_dict())
        if encoder == "lstm":
            theirs.lstm_head.load_state_dict(adapter.lstm.state_dict())
        expected = theirs(torch.arange(5)[None])[0]
    assert (adapter.rows() - expected).abs().max() <= 1e-6
    assert adaptation.trainable == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_hugging_face_peft_computes_the_same_without_a_first_token(architecture, encoder):
    """That library puts the prompt in front of everything, here it stands behind a beginning-of-sequence token."""
    peft = pytest.importorskip("peft")
    model = tiny(architecture)
    adaptation = attach(model, [PTuning(length=3, encoder=encoder, hidden=6)])
    (adapter,) = adaptation.parts[0].adapters.values()
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=3,
        encoder_reparameterization_type=encoder.upper(),
        encoder_hidden_size=6,
    )
    theirs = peft.get_peft_model(tiny(architecture), config).eval()
    there = theirs.prompt_encoder["default"]
    ids = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])
    with torch.no_grad():
        there.embedding.weight.copy_(adapter.E)
        there.mlp_head.load_state_dict(adapter.head.state_dict())
        if encoder == "lstm":
            there.lstm_head.load_state_dict(adapter.lstm.state_dict())
        expected = theirs(input_ids=ids).logits[:, 3:]
        soft = torch.tensor([adaptation.soft_ids] * 2)
        result = model(input_ids=torch.cat([soft, ids], 1)).logits[:, 3:]
    assert (result - expected).abs().max() <= 1e-5
    assert (result - tiny(architecture)(input_ids=ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_what_is_left_is_a_prompt_of_free_embeddings(encoder, tmp_path):
    model = tiny("gpt2")
    adaptation = attach(model, [PTuning(length=3, encoder=encoder, hidden=6)])
    ids = torch.tensor([[*adaptation.soft_ids, 5, 9, 14]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    adaptation.finish()
    save_adapter(adaptation, tmp_path / "adapter", {"name": "gpt2"})
    state = adaptation.state()
    assert [tuple(tensor.shape) for tensor in state.values()] == [(3, 32)]
    loaded = tiny("gpt2")
    assert load_adapter(loaded, tmp_path / "adapter", None).methods == (PTuning(length=3, encoder="none", hidden=6),)
    plain = tiny("gpt2")
    (key,) = (other := attach(plain, [PromptTuning(length=3)])).state()
    other.load_state({key: next(iter(state.values()))})
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, before)
        assert torch.equal(plain(input_ids=ids).logits, before)


def test_the_mlp_by_hand():
    # E 20 * 32; (32 + 1) * 128 + (128 + 1) * 128 + (128 + 1) * 32
    assert count_trained(PTuning(), Layout(tiny("llama"))) == 640 + 4224 + 16512 + 4128
