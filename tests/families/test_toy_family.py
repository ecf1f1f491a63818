"""A family in a file of its own: an encoder is found by its configuration, loaded, laid out and adapted."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.families import FAMILIES, Family, check, family_of
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.recipe import ModelSection

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = ModelSection(init={"architecture": "bert", **SIZES}, tokenizer="bundled/tiny")


class Encoder(Family):
    """BERT, with the names of its own modules."""

    loader = AutoModel
    examples = "text"
    objective = "cross-entropy"

    def architectures(self):
        return ["bert"]

    def refusal(self, config):
        return None if config.model_type == "bert" else f"{config.model_type} is no toy encoder."

    def names(self, architecture):
        attention = {"attention": ["attention"], "q": ["self.query"], "k": ["self.key"], "v": ["self.value"]}
        rest = {"mlp": [], "o": ["output.dense"], "gate": [], "up": ["intermediate.dense"], "down": ["output.dense"]}
        return {**attention, **rest, "fused": {}}


@pytest.fixture
def toy(monkeypatch):
    FAMILIES.names()
    monkeypatch.setitem(FAMILIES._entries, "encoder", Encoder())
    return FAMILIES["encoder"]


def test_an_encoder_is_refused_until_a_family_takes_it():
    with pytest.raises(PeftkitError, match=r"model\.init\.architecture: bert is not a decoder .*such as llama"):
        load(BERT)


def test_it_is_loaded_laid_out_and_adapted(toy):
    model = load(BERT).module
    assert family_of(model.config) is toy
    assert Layout(model).roles() == {"q": 2, "k": 2, "v": 2, "o": 2, "up": 2, "down": 2}
    ids = torch.arange(3, 9)[None]
    base = model(input_ids=ids).last_hidden_state.detach()
    adaptation = attach(model, [METHODS["lora"].from_options({"rank": 2, "targets": ["attention", "mlp"]})])
    assert torch.equal(model(input_ids=ids).last_hidden_state, base)
    with torch.no_grad():
        for parameter in adaptation.parameters():
            parameter[1].normal_()
    assert not torch.allclose(model(input_ids=ids).last_hidden_state, base)


def test_the_others_keep_their_family(toy):
    assert family_of(AutoConfig.for_model("llama")) is FAMILIES["decoder"]
    with pytest.raises(PeftkitError, match=r"^here: t5 is an encoder-decoder.* work\. t5 is no toy encoder\.$"):
        check(AutoConfig.for_model("t5"), "here")
