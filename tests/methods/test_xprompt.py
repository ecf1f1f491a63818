"""XPrompt by hand: what is scored, what is cut when, what a cut is worth, and what is saved."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, check_methods, load_adapter, save_adapter
from peftkit.data.batches import collate, without
from peftkit.data.encode import Encoded, insert
from peftkit.errors import PeftkitError
from peftkit.methods.xprompt import XPrompt
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20, 33], [7, 7, 30, 41, 8]])
SMALL = XPrompt(length=4, pieces=8, tokens_cut=0.5, pieces_cut=0.25)


def loss(model, adaptation):
    soft = torch.tensor([adaptation.soft_ids] * 2, dtype=torch.long)
    return model(torch.cat([soft, IDS], 1), labels=torch.cat([soft * 0 - 100, IDS], 1)).loss


def trained(steps=10, until=None):
    """Train in a run of `steps`, and return what was seen after each."""
    model = tiny("llama")
    adaptation = attach(model, [SMALL])
    (prompt,) = adaptation.adapters()
    optimizer = torch.optim.Adam([prompt.P], lr=0.1)
    seen = []
    for step in range(until or steps):
        loss(model, adaptation).backward()
        gradient = prompt.P.grad.clone()
        adaptation.after_backward(step, steps)
        optimizer.step()
        adaptation.after_step(step, steps)
        optimizer.zero_grad()
        seen.append((adaptation.told(), prompt.P.detach().clone(), gradient, prompt.mask.clone()))
    return model, adaptation, prompt, seen


def test_each_stage_does_what_it_says():
    _, adaptation, prompt, seen = trained()
    stages = [told["stage"] for told, *_ in seen]
    assert stages == ["train"] * 3 + ["score tokens", "score pieces"] + ["retrain"] * 5
    assert [told["prompt_tokens"] for told, *_ in seen] == [4] * 4 + [2] * 6
    assert [told["prompt_pieces"] for told, *_ in seen] == [32] * 4 + [16] + [12] * 5
    ended = seen[3][1]
    for _, values, *_ in seen[4:6]:
        assert torch.equal(values, ended)
    # Tokens by |dL/dg_i|, the products of a row and its gradient summed up.
    tokens = (ended * seen[4][2]).sum(1).abs()
    kept = sorted(tokens.topk(2).indices.tolist())
    assert prompt.alive.nonzero().flatten().tolist() == kept
    assert adaptation.soft_ids == tuple(96 + index for index in kept)
    pieces = (ended * seen[5][2]).view(4, 8, 4).sum(-1).abs()
    pieces[[index for index in range(4) if index not in kept]] = -1
    least = pieces.flatten().topk(12).indices.sort().values
    assert torch.equal(prompt.mask.flatten().nonzero().flatten(), least)
    # What is cut gets no gradient any more.
    assert not seen[8][2].view(4, 8, 4)[prompt.mask == 0].any()


def test_what_is_cut_is_in_no_text_as_if_it_had_been_masked():
    """A model without positions tells whether the row is there, and not where."""
    model = tiny("bloom", num_hidden_layers=1)
    adaptation = attach(model, [SMALL])
    (prompt,) = adaptation.adapters()
    row = insert(Encoded(IDS[0].tolist(), IDS[0].tolist()), adaptation.soft_ids, 0)
    whole = collate([row], 0)
    prompt.cut_tokens(3, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    shorter = without(whole, adaptation.dropped_ids)
    assert shorter.input_ids[0].tolist() == [97, 98, 99, *IDS[0].tolist()]
    assert (shorter.tokens, shorter.trained) == (8, whole.trained)
    mask = torch.ones_like(whole.input_ids)
    mask[:, 0] = 0
    with torch.no_grad():
        expected = model(whole.input_ids, attention_mask=mask).logits[:, 1:]
        assert (model(shorter.input_ids).logits - expected).abs().max() <= 1e-4


def test_what_is_left_is_saved_and_no_more(tmp_path):
    model, adaptation, _, _ = trained()
    before = loss(model, adaptation).item()
    adaptation.finish()
    assert loss(model, adaptation).item() == before
    state = {key.rpartition("/")[2]: tensor for key, tensor in adaptation.state().items()}
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {"V": [12, 4], "mask": [2, 8]}
    save_adapter(adaptation, tmp_path / "adapter", {"name": "llama"})
    fresh = tiny("llama")
    again = load_adapter(fresh, tmp_path / "adapter", None)
    assert again.soft_ids == (96, 97)
    assert loss(fresh, again).item() == before


def test_a_run_that_is_stopped_in_the_middle_goes_on():
    _, _, whole, _ = trained()
    for until in (2, 4, 5, 8):
        _, stopped, _, _ = trained(until=until)
        state = stopped.state()
        model = tiny("llama")
        adaptation = attach(model, [SMALL])
        adaptation.load_state(state)
        (prompt,) = adaptation.adapters()
        assert adaptation.soft_ids == stopped.soft_ids
        assert torch.equal(prompt.scores, next(stopped.adapters()).scores)
        assert adaptation.told() == stopped.told()
    assert whole.P is not None


def test_a_schedule_longer_than_the_run_and_odd_pieces_are_refused():
    with pytest.raises(PeftkitError, match="training for 1 of 3 steps and scoring twice for 1 leaves none"):
        trained(steps=3)
    with pytest.raises(PeftkitError, match="5 pieces do not divide the width 32: set pieces to 4"):
        check_methods(tiny("llama"), [XPrompt(pieces=5)])
