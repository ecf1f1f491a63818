"""Targets: what they name, and what is said when they name nothing."""

from __future__ import annotations

import re

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Rows, parse_layers
from peftkit.method import METHODS
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


OLD = {
    "llama": ("model.layers.", "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
    "qwen3": ("model.layers.", "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
    "gemma": ("model.layers.", "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
    "mistral": ("model.layers.", "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"),
    "phi": ("model.layers.", "self_attn.{q,k,v}_proj self_attn.dense mlp.fc{1,2}"),
    "gpt2": ("transformer.h.", "attn.c_attn[{q,k,v}] attn.c_proj mlp.c_{fc,proj}"),
    "gpt_neox": ("gpt_neox.layers.", "attention.query_key_value[{q,k,v}] attention.dense mlp.dense_{h_to_4h,4h_to_h}"),
    "opt": ("model.decoder.layers.", "self_attn.{q,k,v}_proj self_attn.out_proj fc{1,2}"),
    "bloom": (
        "transformer.h.",
        "self_attention.query_key_value[{q,k,v}] self_attention.dense mlp.dense_{h_to_4h,4h_to_h}",
    ),
}
"""The linear sites of a layer, in their order, by which adapters trained before are saved."""
ROWS = {
    "gpt2": [Rows(0, 32, 96), Rows(32, 32, 96), Rows(64, 32, 96)],
    "gpt_neox": [Rows(0, 8, 24, 4), Rows(8, 8, 24, 4), Rows(16, 8, 24, 4)],
    "bloom": [Rows(0, 8, 24, 4), Rows(8, 8, 24, 4), Rows(16, 8, 24, 4)],
}


def spelled(names: str) -> list[str]:
    """Write out `a{b,c}` as `ab ac`."""
    lists = [re.fullmatch(r"(.*)\{(.*)\}(.*)", name) for name in names.split()]
    return [
        name if match is None else f"{match[1]}{inner}{match[3]}"
        for name, match in zip(names.split(), lists, strict=True)
        for inner in (match[2].split(",") if match else [""])
    ]


@pytest.mark.parametrize("family", OLD)
def test_sites_of_families_that_were_there_stay(family):
    layout = Layout(tiny(family))
    before, names = OLD[family]
    inside = [f"{before}{layer}.{name}" for layer in (0, 1) for name in spelled(names)]
    assert paths(layout, "linear") == inside
    assert [site.id for site in layout.linears][:-1] == inside
    assert [site.rows for site in layout.linears if site.rows is not None][:3] == ROWS.get(family, [])
    lora = METHODS["lora"].from_options({})
    assert [site.id for site in lora.sites(layout)] == paths(layout, "q", "v")
    assert [site.id for site in METHODS["serial-adapter"].from_options({}).sites(layout)] == paths(layout, "o", "down")
    assert [site.id for site in METHODS["ia3"].from_options({}).sites(layout)] == paths(layout, "k", "v", "down")
    told = {name for name, cls in METHODS.items() if cls.needs is None and cls.from_options({}).notices(layout)}
    # AdapterDrop tells how deep it drops, on any model, and (IA)^3 that a norm follows the keys.
    assert told == ({"adapterdrop", "ia3"} if family == "qwen3" else {"adapterdrop"})
