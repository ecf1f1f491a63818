"""BitFit by hand: which vectors it trains, and its refusal of models without biases."""

from __future__ import annotations

import pytest

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.methods.bitfit import BitFit
from peftkit.models.tiny import tiny


def test_it_trains_every_bias_of_gpt2_and_no_other_tensor():
    adaptation = attach(tiny("gpt2"), [BitFit()])
    # A block: c_attn 96, c_proj 32, c_fc 128, c_proj 32, two norms 64; two blocks and the last norm of 32.
    assert adaptation.trainable == 2 * (96 + 32 + 128 + 32 + 64) + 32
    assert all(key.endswith(".bias") for key, _ in adaptation.parameters())


def test_the_papers_smaller_choice():
    adaptation = attach(tiny("opt"), [BitFit(targets=("q", "up"))])
    assert adaptation.trainable == 2 * (32 + 64)


@pytest.mark.parametrize("targets", ["all", ("q", "up")])
def test_a_model_without_biases_is_refused_with_what_to_use(targets):
    with pytest.raises(PeftkitError, match=r"llama model has no bias.*Use layernorm-tuning"):
        attach(tiny("llama"), [BitFit(targets=targets)])


def test_a_part_of_a_fused_bias_is_refused():
    with pytest.raises(PeftkitError, match="biases of q, k, v in one vector"):
        attach(tiny("gpt2"), [BitFit(targets="q")])
    assert attach(tiny("gpt2"), [BitFit(targets=("q", "k", "v"))]).trainable == 2 * 96
