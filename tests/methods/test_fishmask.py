"""FISH Mask by hand: the Fisher information of a linear classifier, the choice over sites, and what is saved."""

from __future__ import annotations

import torch
from torch import nn

from peftkit.adaptation import attach, count_trained
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.layers.sparse import largest
from peftkit.layout import Site
from peftkit.methods.fishmask import FishMask, examples, fisher
from peftkit.models.tiny import tiny

ROWS = [Encoded([3, 4, 5, 6], [-100, 4, 5, 6]), Encoded([7, 8], [-100, 8]), Encoded([9, 8, 7], [-100, -100, 7])]


class Classifier(nn.Module):
    """Two classes; the features of token t are row t of a table, and the adapter sits on the linear layer."""

    def __init__(self, adapter, table):
        super().__init__()
        self.linear, self.adapter, self.table = adapter.site.module, adapter, table

    def forward(self, input_ids, use_cache):
        y = self.adapter(self.linear, self.table[input_ids])

        class Out:
            logits = y

        return Out


def test_it_is_the_mean_of_squared_gradients_of_each_example():
    torch.manual_seed(0)
    linear = nn.Linear(3, 2, bias=False)
    adapter = FishMask(density=0.4).build(Site("linear", linear, 3, 2))
    table = torch.randn(2, 3)
    rows = [(torch.tensor([[a, b]]), torch.tensor([[-100, b]])) for a, b in ((0, 1), (1, 0), (1, 1))]
    found = fisher(Classifier(adapter, table), {"linear": adapter}, rows)["linear"]
    expected = torch.zeros(2, 3)
    for ids, _ in rows:
        x, y = table[ids[0, 0]], ids[0, 1]
        # The gradient of log p(y | x) is (one-hot(y) - p) x'.
        error = nn.functional.one_hot(y, 2) - torch.softmax(linear(x), 0)
        expected += torch.outer(error, x).square() / 3
    assert torch.allclose(found, expected, atol=1e-6)
    assert adapter.probe is None


def test_examples_come_one_by_one_without_padding():
    seen = [ids.tolist() for ids, _ in examples([collate(ROWS[:2], 0), collate(ROWS[2:], 0)], 1024)]
    assert seen == [[[3, 4, 5, 6]], [[7, 8]], [[9, 8, 7]]]
    assert len(list(examples([collate(ROWS[:2], 0), collate(ROWS[2:], 0)], 1))) == 1


def test_the_largest_over_all_sites_are_chosen():
    masks = largest({"a": torch.tensor([[5.0, 1.0], [2.0, 9.0]]), "b": torch.tensor([[0.0, 8.0, 1.5]])}, 3)
    assert masks["a"].tolist() == [[True, False], [False, True]]
    assert masks["b"].tolist() == [[False, True, False]]


def test_the_mask_follows_the_data_and_only_changed_entries_are_saved():
    method = FishMask(density=0.02)
    model = tiny("gpt2").train()
    adaptation = attach(model, [method])
    count = adaptation.trainable
    spread = {key: tensor.clone() for key, tensor in adaptation.state().items()}
    adaptation.prepare([collate(ROWS, 0)])
    assert model.training
    assert adaptation.trainable == count == count_trained(method, adaptation.layout)
    state = adaptation.state()
    assert any(not torch.equal(tensor, spread[key]) for key, tensor in state.items())
    # 2 % of the 4 * 32 * 32 + 2 * 32 * 128 weights of each of two blocks, 8 bytes each.
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 128)
    assert sum(t.numel() * t.element_size() for t in state.values()) == 8 * (2 * (4 * 20 + 2 * 82))
    assert count / weights < 0.0201
    other = attach(tiny("gpt2"), [method])
    other.load_state({key: tensor.clone() for key, tensor in state.items()})
    assert all(torch.equal(tensor, other.state()[key]) for key, tensor in state.items())


def test_a_site_without_an_entry_trains_and_merges():
    adaptation = attach(tiny("llama"), [FishMask(density=0.01)])
    adapters = list(adaptation.parts[0].adapters.values())
    adapters[0].choose(torch.zeros(32, 32, dtype=torch.bool))
    optimizer = torch.optim.AdamW(adaptation.groups(1e-2, 0.0), fused=True)
    ids = torch.arange(3, 15)[None]
    adaptation.model(input_ids=ids, labels=ids).loss.backward()
    nn.utils.clip_grad_norm_([p for _, p in adaptation.parameters()], 1.0)
    optimizer.step()
    assert adapters[1].values.abs().min() > 0
    adaptation.merge_()
