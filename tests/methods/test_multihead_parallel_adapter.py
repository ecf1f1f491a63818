"""The multi-head parallel adapter against the equations of its paper, and beside a prefix without a softmax."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.methods.multihead_parallel_adapter import MultiheadParallelAdapter
from peftkit.models.tiny import tiny

IDS = torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(0))


def test_each_head_gets_the_bottleneck_of_its_own_in_front_of_the_output_projection():
    model, seen = tiny("llama"), {}
    attention = model.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda m, a, k: seen.update(x=k["hidden_states"]), with_kwargs=True)
    attention.o_proj.register_forward_pre_hook(lambda m, a: seen.update(y=a[0]))
    with torch.no_grad():
        model(input_ids=IDS)
        plain = seen["y"]
        adaptation = attach(model, [MultiheadParallelAdapter(bottleneck=3, scale=2.0, layers="0")])
        (adapter,) = adaptation.adapters()
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        model(input_ids=IDS)
    # 4 heads of size 8: y_h + 2 (U_h relu(D_h x + b_h) + c_h), head by head.
    heads = [torch.relu(seen["x"] @ adapter.D[h].T + adapter.b[h]) @ adapter.U[h].T + adapter.c[h] for h in range(4)]
    assert adapter.D.shape == (4, 3, 32)
    assert torch.allclose(seen["y"], plain + 2 * torch.cat(heads, -1), atol=1e-5)


def test_attention_of_a_model_s_own_code_is_refused_with_what_there_is():

    layout = Layout(tiny("bloom"))
    with pytest.raises(PeftkitError, match="choose parallel-adapter with beside: attention"):
        MultiheadParallelAdapter().sites(layout)
