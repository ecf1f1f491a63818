"""PTP by hand: what two passes add up to, noise of texts alone, and a change that raises the loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach, check_methods
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded, insert
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.methods.ptp import PTP, Perturbation, Perturbed
from peftkit.models.tiny import tiny
from peftkit.objectives.cross_entropy import CrossEntropy

ROWS = [[5, 9, 14, 20, 33, 41], [7, 7, 30, 41, 8]]
OF = {"prompt-tuning": {"length": 3}}


def passed(method, passes="backward"):
    """Return the loss of a micro-batch as training takes it, and the gradients."""
    torch.manual_seed(0)
    model = tiny("llama")
    adaptation = attach(model, [method])
    given = [insert(Encoded(ids, [-100, *ids[1:]]), adaptation.soft_ids, 0) for ids in ROWS]
    plain = Plain(Engine(model, Arrangement()), CrossEntropy(), adaptation, torch.device("cpu"))
    batch = collate(given, 0)
    if passes == "backward":
        loss = plain.backward([batch], 1).loss
    else:
        loss = plain.evaluate([batch], as_trained=passes == "as trained").loss
    return loss, [parameter.grad for _, parameter in adaptation.parameters()]


def test_without_noise_the_loss_is_double():
    once, gradient = passed(PTP(of=OF).prompt)
    for kind in ("random", "adversarial"):
        twice, doubled = passed(PTP(of=OF, kind=kind, epsilon=0.0))
        assert twice == 2 * once
        torch.testing.assert_close(doubled[0], 2 * gradient[0])


def test_what_is_searched_for_raises_the_loss_and_noise_moves_it():
    once, _ = passed(PTP(of=OF).prompt)
    assert passed(PTP(of=OF, kind="adversarial", epsilon=0.01))[0] > 2 * once
    assert passed(PTP(of=OF, epsilon=0.01))[0] != 2 * once
    assert passed(PTP(of=OF, epsilon=0.01), "validation")[0] == pytest.approx(once, rel=1e-6)
    assert passed(PTP(of=OF, epsilon=0.0), "as trained")[0] == pytest.approx(2 * once, rel=1e-6)


def test_a_convex_toy_is_climbed_along_its_gradient_and_soft_rows_are_left():
    table = nn.Embedding(6, 3)
    adapter = Perturbation(Site("e", table, 6, 3, "embedding"), Perturbed(kind="adversarial", radius=0.5)).train()
    ids = torch.tensor([[0, 3, 6]])

    def call(x):
        return table(x.clamp(max=5))

    clean = adapter(call, ids).square().sum()
    clean.backward()
    with adapter.moved():
        moved = adapter(call, ids)
    rows = table(torch.tensor([0, 3, 5])).detach()
    expected = rows + torch.tensor([[0.5], [0.5], [0.0]]) * rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(moved[0], expected)
    assert moved.square().sum() > clean


def test_any_soft_prompt_is_taken_and_others_are_refused():
    for name in ("p-tuning-v2", "prefix-propagation", "llama-adapter", "smop"):
        assert attach(tiny("llama"), [PTP(of=name)]).trainable > 0
    with pytest.raises(PeftkitError, match="'lora' is no soft prompt: set of to one of adaptive-prefix-tuning"):
        check_methods(tiny("llama"), [PTP(of="lora")])
    with pytest.raises(PeftkitError, match="of has 2 methods"):
        check_methods(tiny("llama"), [PTP(of={"smop": {}, "dept": {}})])
    with pytest.raises(PeftkitError, match="kind is adversarial, and this training takes no gradients"):
        passed(PTP(of=OF, kind="adversarial"), "as trained")
