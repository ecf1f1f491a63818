"""Targets: what they name, and what is said when they name nothing."""

from __future__ import annotations

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Rows, parse_layers
from peftkit.models.tiny import tiny


@pytest.fixture(scope="module")
def llama() -> Layout:
    return Layout(tiny("llama"))


def paths(layout: Layout, *targets: str, **rest) -> list[str]:
    return [site.id for site in layout.resolve(targets, **rest)]


def test_roles_groups_and_patterns(llama):
    assert paths(llama, "q") == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert len(paths(llama, "attention")) == 8
    assert len(paths(llama, "linear")) == 14
    assert paths(llama, "q_proj") == paths(llama, "q")
    assert paths(llama, "model.layers.1.mlp.*") == [f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")]
    assert paths(llama, "q", "q_proj") == paths(llama, "q")
    assert paths(llama, "head") == ["lm_head"]


def test_layers_and_exclude(llama):
    assert paths(llama, "linear", layers=[1], exclude=("mlp", "o")) == [
        f"model.layers.1.self_attn.{n}_proj" for n in "qkv"
    ]
    with pytest.raises(PeftkitError, match="0 to 1"):
        llama.resolve("q", layers=[5])
    with pytest.raises(PeftkitError, match="leave none"):
        llama.resolve("q", exclude=("q",))


def test_a_target_that_matches_nothing_tells_what_there_is(llama):
    with pytest.raises(PeftkitError, match=r"'q_prj' matches no linear module.*Did you mean 'q_proj'"):
        llama.resolve("q_prj")
    with pytest.raises(PeftkitError, match=r"'gate' matches no linear module of this gpt2 model.*q \(2\)"):
        Layout(tiny("gpt2")).resolve("gate")


def test_a_fused_module_whole_or_by_parts():
    layout = Layout(tiny("gpt2"))
    assert paths(layout, "q") == ["transformer.h.0.attn.c_attn[q]", "transformer.h.1.attn.c_attn[q]"]
    (whole, _) = layout.resolve("c_attn")
    assert (whole.outputs, whole.inputs, whole.rows) == (96, 32, None)
    with pytest.raises(PeftkitError, match="both as a whole module and by a part"):
        layout.resolve(["c_attn", "v"])


def test_rows_take_and_put():
    y = torch.arange(12.0).view(1, 12)
    rows = Rows(start=2, length=2, stride=6, count=2)
    assert rows.take(y).tolist() == [[2, 3, 8, 9]]
    changed = rows.put(y, torch.tensor([[-1.0, -2, -3, -4]]))
    assert changed.tolist() == [[0, 1, -1, -2, 4, 5, 6, 7, -3, -4, 10, 11]]
    assert y[0, 2] == 2


def test_parse_layers():
    assert parse_layers("0-2, 5") == (0, 1, 2, 5)
    assert parse_layers([3]) == (3,)
    assert parse_layers(None) is None
    for wrong in ("", "a", "3-1", "1-", "-1"):
        with pytest.raises(PeftkitError, match="not a choice of layers"):
            parse_layers(wrong)


def test_a_tied_head_is_told():
    assert Layout(tiny("gpt2")).resolve("head")[0].tied
    assert not Layout(tiny("llama")).resolve("head")[0].tied
