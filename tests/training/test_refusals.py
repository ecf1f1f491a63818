"""A method that does not suit the model is refused before a weight is loaded, with what would be legal."""

from __future__ import annotations

import pytest
from small_runs import make_recipe

from peftkit import assembly, recipe
from peftkit.errors import PeftkitError
from peftkit.training import preparation

BIAS_FREE = {"attention_bias": False}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("bitfit", r"bitfit: this llama model has no bias at all.*layernorm-tuning"),
        ({"lora": {"rank": 100}}, r"lora: rank 100 is larger than .* choose at most 16"),
        ({"lora": {"targets": ["qq"]}}, r"'qq'.*q \(2\)"),
        ({"lora": {"layers": "7"}}, r"layers \[7\] name no layer of the model: it has 0 to 1"),
        (["full", "layernorm-tuning"], r"'full' and 'layernorm-tuning' both train .*keep one"),
        ({"compacter": {"division": 5}}, r"compacter: .*division 5"),
    ],
    ids=str,
)
def test_before_a_weight_is_loaded(source, method, message, monkeypatch):
    chosen = make_recipe(source, method)
    chosen["model"]["init"] |= BIAS_FREE
    loaded = assembly.load

    def watched(section, *, weights=True, **rest):
        assert not weights, "the weights were loaded first"
        return loaded(section, weights=weights, **rest)

    monkeypatch.setattr(assembly, "load", watched)
    with pytest.raises(PeftkitError, match=message):
        preparation.prepare(recipe.load(chosen))


def test_an_encoder_is_refused(source):
    chosen = make_recipe(source, "lora")
    chosen["model"]["init"] = {"architecture": "bert", "hidden_size": 16}
    with pytest.raises(PeftkitError, match="bert"):
        preparation.prepare(recipe.load(chosen))
