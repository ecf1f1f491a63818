"""Late prompt tuning by hand: the layers below are the base's, those above see the prompt, nothing below is kept."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.methods.late_prompt_tuning import LatePromptTuning
from peftkit.models.tiny import tiny
from peftkit.ports.context import context_of

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])
LENGTHS = torch.tensor([3, 2])


def run(model, adaptation):
    soft = torch.tensor([adaptation.soft_ids] * 2)
    told = torch.arange(soft.shape[1] + 5)[None] < soft.shape[1] + LENGTHS[:, None]
    with context_of(model).prompted(told):
        return model(torch.cat([soft, IDS], 1), use_cache=False).logits


@pytest.mark.parametrize("generator", ["naive", "pooling"])
def test_the_rows_enter_in_the_middle(generator):
    model, plain = tiny("llama", num_hidden_layers=3), tiny("llama", num_hidden_layers=3)
    adaptation = attach(model, [LatePromptTuning(length=2, layer=2, bottleneck=4, generator=generator)])
    late = next(adapter for adapter in adaptation.adapters() if adapter.site.role == "block")
    base, layer = plain.model, plain.model.layers[2]
    with torch.no_grad():
        states = []
        handle = layer.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        plain(IDS)
        handle.remove()
        if generator == "naive":
            inner = torch.relu(late.down(torch.stack([states[0][0, 2], states[0][1, 1]])))
            rows = late.up(inner).view(2, 2, 32)
        else:
            down = late.down(states[0])
            # Three tokens in two parts: the one in the middle is in both.
            halves = [torch.stack([down[0, :2].mean(0), down[0, 1:3].mean(0)]), down[1, :2]]
            rows = late.up(torch.relu(torch.stack(halves)))
        x = torch.cat([rows, states[0]], 1)
        turns = base.rotary_emb(x, torch.arange(7)[None])
        mask = torch.full((7, 7), float("-inf")).triu(1)[None, None]
        y = layer(x, attention_mask=mask, position_embeddings=turns)
        y = y[0] if isinstance(y, tuple) else y
        expected = plain.lm_head(base.norm(y))[:, 2:]
        result = run(model, adaptation)[:, 2:]
    assert (result - expected).abs().max() <= 1e-5


def kept_bytes(layer: int) -> tuple[int, int]:
    """Return the bytes kept for the backward pass before the rows are made, and all."""
    model = tiny("llama", num_hidden_layers=4)
    adaptation = attach(model, [LatePromptTuning(length=2, layer=layer, bottleneck=4)])
    late = next(adapter for adapter in adaptation.adapters() if adapter.site.role == "block")
    kept, before, rows = [0], [], late.rows

    def pack(tensor):
        kept[0] += tensor.numel() * tensor.element_size()
        return tensor

    late.rows = lambda y: before.append(kept[0]) or rows(y)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(model, adaptation).sum()
    return before[0], kept[0]


def test_nothing_below_is_kept():
    found = {layer: kept_bytes(layer) for layer in (1, 2, 3)}
    assert {below for below, _ in found.values()} == {0}
    first, second, third = (whole for _, whole in found.values())
    assert first - second == second - third > 0


def test_a_layer_that_is_not_there_is_refused():
    for layer in (2, 9):
        with pytest.raises(PeftkitError, match=f"layer is {layer}, and of the 2 layers .* 1 to 1 have one below"):
            check_methods(tiny("llama"), [LatePromptTuning(layer=layer)])
