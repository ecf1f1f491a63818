"""AdaMix: one copy is the plain method bit for bit, the mean of tensors stays, and two passes are pulled together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from subjects_of_methods import IDS, moved

from peftkit.adaptation import attach
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.methods.adamix import AdaMix
from peftkit.methods.lora import LoRA
from peftkit.models.tiny import tiny
from peftkit.objectives import OBJECTIVES

CPU = torch.device("cpu")
ROWS = [Encoded(ids, [-100, *ids[1:]]) for ids in ([5, 6, 7, 8], [5, 6, 9], [11, 12, 13, 14, 15])]
PAIR = {"lora": {"rank": 4, "targets": "linear"}}


def passes(method, arrangement=None, checkpointing=False):
    model = tiny("llama")
    adaptation = moved(attach(model, [method]))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(model, arrangement or Arrangement())
    return Plain(engine, OBJECTIVES["cross-entropy"](), adaptation, CPU), adaptation


def gradients(plain, adaptation, rows=ROWS):
    result = plain.backward([collate(rows, 0)], 1)
    return result.loss, {key: p.grad for key, p in adaptation.parameters()}


@pytest.mark.parametrize("of", [PAIR, "pfeiffer-adapter"], ids=["lora", "pfeiffer-adapter"])
def test_one_copy_is_the_plain_method_bit_for_bit(of):
    name, options = (of, {}) if isinstance(of, str) else next(iter(of.items()))
    found = []
    for method in (AdaMix(of=of, copies=1), METHODS[name].from_options(options)):
        plain, adaptation = passes(method)
        optimizer = torch.optim.AdamW([p for _, p in adaptation.parameters()], lr=0.01)
        losses = []
        for _ in range(3):
            losses.append(gradients(plain, adaptation)[0])
            optimizer.step()
            optimizer.zero_grad()
        adaptation.finish()
        found.append((losses, adaptation.state()))
    (one, mine), (other, plain_state) = found
    assert one == other
    assert mine.keys() == plain_state.keys()
    assert all(torch.equal(tensor, plain_state[key]) for key, tensor in mine.items())


def test_the_mean_of_the_copies_tensors_stays_under_the_names_of_one_adapter():
    model = tiny("llama")
    adaptation = moved(attach(model, [AdaMix(of=PAIR, copies=3, shared="none")]))
    before = {key: tensor.clone() for key, tensor in adaptation.state().items()}
    logits = model(input_ids=IDS).logits
    adaptation.finish()
    state = adaptation.state()
    assert all(torch.allclose(state[key], before[key].mean(0)) for key in state)
    assert adaptation.chosen == (LoRA(rank=4, targets="linear"),)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-6)
    # What is saved is that of LoRA, loads as it, and merges as it.
    fresh = attach(tiny("llama"), [LoRA(rank=4, targets="linear")])
    fresh.load_state(state)
    fresh.merge_()
    assert torch.allclose(fresh.model(input_ids=IDS).logits, logits, atol=1e-5)
    # Not the mean of the products: with two copies the two differ.
    a, b = before["0/model.layers.0.self_attn.q_proj/A"], before["0/model.layers.0.self_attn.q_proj/B"]
    assert not torch.allclose((b @ a).mean(0), b.mean(0) @ a.mean(0), atol=1e-3)


@pytest.mark.parametrize(("shared", "sizes"), [("up", (3, 1)), ("down", (1, 3)), ("none", (3, 3))])
def test_copies_share_the_half_that_is_named(shared, sizes):
    adaptation = attach(tiny("llama"), [AdaMix(of=PAIR, copies=3, shared=shared)])
    adapter = next(adaptation.adapters())
    assert (adapter.A.numel() // (4 * 32), adapter.B.numel() // (4 * 32)) == sizes


def test_each_pass_takes_one_copy_of_each_block_by_step_view_and_place():
    model = tiny("llama")
    adaptation = moved(attach(model, [AdaMix(copies=4, shared="none")]))
    model.train()
    seen = set()
    for step in range(12):
        adaptation.context.step = step
        model(input_ids=IDS).logits.sum().backward()
        for adapter in adaptation.adapters():
            taken = {}
            for key in ("D", "b", "U", "c"):
                grad = adapter.get_parameter(key).grad.view(4, -1)
                (taken[key],) = grad.any(1).nonzero().flatten().tolist()
            assert taken["D"] == taken["b"]
            assert taken["U"] == taken["c"]
            seen.add((taken["D"], taken["U"]))
        for _, parameter in adaptation.parameters():
            parameter.grad = None
    assert len(seen) > 6


def test_the_gradients_are_those_of_the_loss_and_the_divergence_of_two_passes():
    method = AdaMix(of=PAIR, copies=2, consistency=0.5)
    plain, adaptation = passes(method)
    adaptation.context.step = 3
    loss, mine = gradients(plain, adaptation)
    # The same by the plain expression, row by row.
    _, other = passes(method)
    model, context = other.model, other.context
    model.train()
    context.step, total, terms = 3, 0.0, 0.0
    for row in ROWS:
        ids = torch.tensor([row.ids])
        logits = []
        for view in (0, 1):
            context.view = view
            logits.append(model(input_ids=ids).logits[0, :-1])
        p, q = (x.log_softmax(-1) for x in logits)
        kl = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
        cross = F.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
        total, terms = total + cross + 0.5 * kl / 2, terms + cross.item()
    total.backward()
    assert loss == pytest.approx(terms, rel=1e-5)
    for key, parameter in other.parameters():
        assert torch.allclose(mine[key], parameter.grad, atol=1e-5), key


@pytest.mark.parametrize(
    ("arrangement", "checkpointing"), [(Arrangement(flat=False), False), (Arrangement(), True)], ids=["padded", "again"]
)
def test_packing_and_recomputing_draw_the_same(arrangement, checkpointing):
    method = AdaMix(copies=3)
    expected = gradients(*passes(method))
    loss, found = gradients(*passes(method, arrangement, checkpointing))
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert all(torch.allclose(found[key], gradient, atol=1e-5) for key, gradient in expected[1].items())


def test_equal_copies_agree():
    plain, adaptation = passes(AdaMix(copies=2, consistency=100.0))
    with torch.no_grad():
        for adapter in adaptation.adapters():
            for key, parameter in adapter.named_parameters():
                if key in adapter.blocks:
                    copies = parameter.view(2, *adapter.shapes[key])
                    copies[1] = copies[0]
    _, mine = gradients(plain, adaptation)
    _, without = passes(AdaMix(copies=2, consistency=0.0))
    without.load_state(adaptation.state())
    _, expected = gradients(Plain(Engine(without.model, Arrangement()), plain.objective, without, CPU), without)
    assert all(torch.allclose(mine[key], gradient, atol=1e-5) for key, gradient in expected.items())


def test_what_cannot_be_compared_is_refused():
    adaptation = attach(tiny("llama"), [AdaMix()])
    objective = OBJECTIVES["classification"](labels=("a", "b"))
    with pytest.raises(PeftkitError, match=r"consistency: 0"):
        Plain(Engine(adaptation.model, Arrangement()), objective, adaptation, CPU)
