"""DyLoRA by hand: a cut pair is LoRA of that rank, and the gradients of a step at a drawn rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.methods.dylora import DyLoRA
from peftkit.models.tiny import tiny


def pair(update: str, width: int):
    linear = nn.Linear(3, 3, bias=False)
    adapter = DyLoRA(rank=3, alpha=6.0, update=update).build(Site("linear", linear, 3, 3))
    shared = nn.Module()
    shared.register_buffer("width", torch.tensor([width]))
    adapter.__dict__["shared"] = shared
    nn.init.normal_(adapter.B)
    return linear, adapter.train()


def test_a_step_at_rank_two_is_lora_of_rank_two():
    linear, adapter = pair("all", 2)
    x = torch.randn(4, 3)
    # alpha / b = 6 / 2 = 3
    expected = linear(x) + 3.0 * x @ adapter.A[:2].T @ adapter.B[:, :2].T
    y = adapter(linear, x)
    assert torch.allclose(y, expected, atol=1e-5)
    y.square().sum().backward()
    assert not adapter.A.grad[2].any()
    assert not adapter.B.grad[:, 2].any()
    assert adapter.A.grad[:2].any(dim=1).all()
    assert adapter.B.grad[:, :2].any(dim=0).all()


def test_only_the_last_row_learns_where_that_is_asked():
    linear, adapter = pair("last", 2)
    adapter(linear, torch.randn(4, 3)).square().sum().backward()
    assert adapter.A.grad.any(dim=1).tolist() == [False, True, False]
    assert adapter.B.grad.any(dim=0).tolist() == [False, True, False]


def test_the_drawn_ranks_cover_the_range_and_follow_the_seed():
    def draw():
        adaptation = attach(tiny("llama"), [DyLoRA(rank=5, min_rank=2)])
        torch.manual_seed(3)
        seen = []
        for step in range(40):
            adaptation.after_step(step, 40)
            seen.append(int(adaptation.state()["0/shared/width"]))
        return seen

    assert set(draw()) == {2, 3, 4, 5}
    assert draw() == draw()


def test_use_rank_cuts_the_merge():
    site = Site("linear", nn.Linear(3, 3, bias=False), 3, 3)
    adapter = DyLoRA(rank=3, alpha=6.0, use_rank=1).build(site)
    nn.init.normal_(adapter.B)
    assert torch.allclose(adapter.delta(site.module.weight), 6.0 * adapter.B[:, :1] @ adapter.A[:1])
    with pytest.raises(PeftkitError, match="use_rank is 9, above the rank 8"):
        attach(tiny("llama"), [DyLoRA(use_rank=9)])
