"""The tiny models: nothing about them is trivially zero, and building one leaves no trace."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.models.tiny import ARCHITECTURES, tiny


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_has_varied_values_and_logits_vary(architecture: str) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    model = tiny(architecture)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.model_type == architecture
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.05, name
        assert parameter.dtype == torch.float32
    with torch.no_grad():
        logits = model(torch.arange(3, 19)[None]).logits
    assert logits.shape == (1, 16, 96)
    assert 0.5 < logits.std() < 2
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_overrides_reach_the_configuration() -> None:
    assert tiny("llama", num_hidden_layers=3).config.num_hidden_layers == 3


def test_an_unknown_architecture_is_refused_with_the_nearest() -> None:
    with pytest.raises(PeftkitError, match="'gpt2'"):
        tiny("gtp2")
