"""O-LoRA by hand: the penalty on what earlier pairs read, the start with their help, and the merge of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.methods.lora import LoRA
from peftkit.methods.o_lora import OrthogonalLoRA
from peftkit.methods.ssf import SSF


def earlier(site: Site, down, up):
    adapter = LoRA(rank=1, alpha=1.0).build(site)
    with torch.no_grad():
        adapter.A.copy_(torch.tensor([down]))
        adapter.B.copy_(torch.tensor(up)[:, None])
    return adapter


@pytest.fixture
def site():
    site = Site("linear", nn.Linear(2, 2, bias=False), 2, 2)
    children = {"one": earlier(site, [1.0, 0.0], [1.0, 2.0]), "two": earlier(site, [0.0, 3.0], [0.0, 1.0])}
    return replace(site, children=children)


def test_it_starts_as_the_earlier_ones_together_and_merges_all(site):
    adapter = OrthogonalLoRA(rank=1, alpha=1.0).build(site)
    x, weight = torch.randn(3, 2), site.module.weight
    change = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    torch.testing.assert_close(adapter(site.module, x), x @ (weight + change).T)
    with torch.no_grad():
        adapter.A.copy_(torch.tensor([[1.0, 1.0]]))
        adapter.B.copy_(torch.tensor([[10.0], [20.0]]))
    merged = adapter.merge(weight, None)[0]
    torch.testing.assert_close(merged, weight + change + torch.tensor([[10.0, 10.0], [20.0, 20.0]]))
    torch.testing.assert_close(adapter(site.module, x), x @ merged.T)
    assert set(adapter.state_dict()) == {"A", "B"}


def test_the_penalty_is_what_both_read(site):
    method = OrthogonalLoRA(rank=1, orthogonality=0.5)
    adapter = method.build(site)
    with torch.no_grad():
        adapter.A.copy_(torch.tensor([[2.0, -1.0]]))
    # |2 1 - 1 0| + |2 0 - 1 3| = 2 + 3, halved; squared 4 + 9, halved.
    assert float(method.penalty({"linear": adapter})) == pytest.approx(2.5)
    assert float(replace(method, variant="paper").penalty({"linear": adapter})) == pytest.approx(6.5)
    shrunk = replace(method, orthogonality=0.0, shrinkage=0.1).penalty({"linear": adapter})
    assert float(shrunk) == pytest.approx(0.1 * 5)
    alone = method.build(replace(site, children={}))
    assert method.penalty({"linear": alone}) is None


def test_what_is_no_pair_is_refused_by_its_name(site):
    scale = SSF(targets="q").build(replace(site, children={}))
    with pytest.raises(PeftkitError, match="'scaled' is no low-rank pair at linear"):
        OrthogonalLoRA().build(replace(site, children={"scaled": scale}))
