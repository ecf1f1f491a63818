"""IDPG by hand: what the generator reads, a constant prompt where it makes nothing, and its layers."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.methods.idpg import IDPG
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])
SMALL = {"length": 3, "bottleneck": 8, "division": 4}


def prompted(model, adaptation, lengths=(3, 2)):
    soft = torch.tensor([adaptation.soft_ids] * 2)
    count = soft.shape[1]
    told = torch.arange(count + 5)[None] < count + torch.tensor(lengths)[:, None]
    with torch.no_grad(), context_of(model).prompted(told):
        return model(torch.cat([soft, IDS], 1)).logits


def rows_by_hand(generator, inner):
    """Return W2 z + b2 with W2 as the sum of Kronecker products, written out."""
    W2 = sum(torch.kron(a, b) for a, b in zip(generator.A, generator.B, strict=True))
    return (inner @ W2.T).view(2, 3, -1) + generator.b


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("depth", ["input", "every"])
def test_the_prompt_is_generated_from_the_bases_states_of_the_prompt(architecture, depth):
    model, plain = tiny(architecture), tiny(architecture)
    adaptation = attach(model, [IDPG(**SMALL, depth=depth)])
    generators = [adapter.generator for adapter in adaptation.adapters()]
    inner = adaptation.parts[0].shared.inner
    body = plain.model if architecture == "llama" else plain.transformer
    with torch.no_grad():
        for generator in generators:
            generator.B.normal_()
        means = [body(IDS[row : row + 1, :length])[0][0].mean(0) for row, length in enumerate((3, 2))]
        z = torch.relu(torch.stack(means) @ inner.weight.T + inner.bias)
        rows = [rows_by_hand(generator, z) for generator in generators]
    if depth == "every":

        def placed(module, args):
            return (torch.cat([rows[1], args[0][:, 3:]], 1), *args[1:])

        body.get_submodule("layers.1" if architecture == "llama" else "h.1").register_forward_pre_hook(placed)
    with torch.no_grad():
        expected = plain(inputs_embeds=torch.cat([rows[0], plain.get_input_embeddings()(IDS)], 1)).logits
    assert len(rows) == (2 if depth == "every" else 1)
    assert (prompted(model, adaptation) - expected).abs().max() <= 1e-4


def test_a_generator_that_makes_nothing_leaves_prompt_tuning():
    model, plain = tiny("llama"), tiny("llama")
    adaptation, other = attach(model, [IDPG(**SMALL)]), attach(plain, [PromptTuning(length=3)])
    other.parameters()[0][1].data = dict(adaptation.parameters())["0/model.embed_tokens/generator.b"].data
    assert torch.equal(prompted(model, adaptation), prompted(plain, other))


def test_a_division_that_does_not_divide_is_refused():
    with pytest.raises(PeftkitError, match=r"division 5 does not divide bottleneck 8 .* take a divisor of 8"):
        check_methods(tiny("llama"), [IDPG(length=3, bottleneck=8, division=5)])
