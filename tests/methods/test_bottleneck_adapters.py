"""The bottleneck adapters by hand: where they read, what they add, their starts and counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.methods.compacter import Compacter
from peftkit.methods.parallel_adapter import ParallelAdapter
from peftkit.methods.pfeiffer_adapter import PfeifferAdapter
from peftkit.methods.scaled_parallel_adapter import ScaledParallelAdapter
from peftkit.methods.serial_adapter import SerialAdapter
from peftkit.models.tiny import tiny

IDS = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])


def by_hand(method) -> tuple[nn.Linear, nn.Module]:
    """f doubles its input; D = [1, 1], b = -1, U = [1, 2], c = [0, 1]."""
    linear = nn.Linear(2, 2, bias=False)
    adapter = method.build(Site("linear", linear, 2, 2))
    with torch.no_grad():
        linear.weight.copy_(2 * torch.eye(2))
        adapter.D.fill_(1.0)
        adapter.b.fill_(-1.0)
        adapter.U.copy_(torch.tensor([[1.0], [2.0]]))
        adapter.c.copy_(torch.tensor([0.0, 1.0]))
    return linear, adapter


def test_a_serial_adapter_reads_the_output():
    linear, adapter = by_hand(PfeifferAdapter(bottleneck=1))
    # o = [2, 4]; ReLU(6 - 1) = 5; [2, 4] + 5 [1, 2] + [0, 1]
    assert adapter(linear, torch.tensor([[1.0, 2.0]])).tolist() == [[7.0, 15.0]]
    # o = [-2, 2]; ReLU(0 - 1) = 0
    assert adapter(linear, torch.tensor([[-1.0, 1.0]])).tolist() == [[-2.0, 3.0]]


def test_a_parallel_adapter_reads_the_input_and_is_scaled():
    x = torch.tensor([[1.0, 2.0]])
    # f(x) = [2, 4]; ReLU(3 - 1) = 2; 2 [1, 2] + [0, 1] = [2, 5]
    linear, adapter = by_hand(ParallelAdapter(bottleneck=1))
    assert adapter(linear, x).tolist() == [[4.0, 9.0]]
    linear, adapter = by_hand(ScaledParallelAdapter(bottleneck=1))
    assert adapter(linear, x).tolist() == [[10.0, 24.0]]


def test_where_they_sit():
    layout = Layout(tiny("llama"))
    ends = lambda method: [site.id.removeprefix("model.layers.") for site in method.sites(layout)]  # noqa: E731
    attention, mlp = [f"{i}.self_attn.o_proj" for i in (0, 1)], [f"{i}.mlp.down_proj" for i in (0, 1)]
    assert sorted(ends(SerialAdapter())) == sorted(attention + mlp)
    assert ends(PfeifferAdapter()) == mlp
    assert ends(ScaledParallelAdapter()) == ["0.mlp", "1.mlp"]
    assert ends(ParallelAdapter(beside="attention")) == ["0.self_attn", "1.self_attn"]


def test_counts_by_hand():
    layout = Layout(tiny("llama"))
    # a module: 2 * 8 * 32 + 8 + 32 = 552
    assert count_trained(SerialAdapter(bottleneck=8), layout) == 4 * 552
    assert count_trained(PfeifferAdapter(bottleneck=8), layout) == 2 * 552
    assert count_trained(ParallelAdapter(bottleneck=8), layout) == 2 * 552
    # five layer norms of 32 weights
    assert count_trained(SerialAdapter(bottleneck=8, norms=True), layout) == 4 * 552 + 5 * 32
    # n^3 = 64 shared; a matrix width + r = 40; biases 8 + 32
    assert count_trained(Compacter(bottleneck=8), layout) == 64 + 4 * (2 * 40 + 40)


def test_the_published_starts_are_near_the_base_and_not_on_it():
    base = tiny("llama")(input_ids=IDS).logits
    for method in (SerialAdapter(init="houlsby"), Compacter(init="published")):
        model = tiny("llama")
        adaptation = attach(model, [method])
        difference = (model(input_ids=IDS).logits - base).abs().max()
        assert 0 < difference < 0.05 * base.abs().max(), method.name
        adaptation.remove()
    adapter = SerialAdapter(init="houlsby", bottleneck=200).build(Layout(tiny("llama")).resolve("o")[0])
    for matrix in (adapter.D, adapter.U):
        assert matrix.abs().max() <= 0.02
        assert 0.008 < matrix.std() < 0.0092  # 0.0088: a normal of deviation 0.01 cut at two deviations
    assert not adapter.b.any() and not adapter.c.any()  # noqa: PT018


def test_compacter_is_the_dense_adapter_of_its_kronecker_sums():
    adaptation = attach(tiny("llama"), [Compacter(bottleneck=8, init="published", activation="relu")])
    shared, adapters = adaptation.parts[0].shared, list(adaptation.parts[0].adapters.values())
    assert all(adapter.shared is shared for adapter in adapters)
    assert [key for key, _ in adaptation.parameters() if key.endswith("/A")] == ["0/shared/A"]
    adapter, o = adapters[0], torch.randn(3, 32)

    def dense(s, t):
        return sum(torch.kron(a, torch.outer(s[i], t[i])) for i, a in enumerate(shared.A))

    down, up = dense(adapter.s_down, adapter.t_down), dense(adapter.s_up, adapter.t_up)
    assert (down.shape, up.shape) == ((32, 8), (8, 32))
    expected = o + torch.relu(o @ down + adapter.b) @ up + adapter.c
    assert torch.allclose(adapter(lambda x: x, o), expected, atol=1e-6)


def test_compacter_wants_sizes_that_divide():
    for options, what in (({"bottleneck": 6}, "the bottleneck is 6"), ({"division": 5, "bottleneck": 5}, "is 32")):
        with pytest.raises(PeftkitError, match=what):
            attach(tiny("llama"), [Compacter(**options)])
