"""What no family takes is refused, and a new family leaves those of the others where they are."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModel

from peftkit.errors import PeftkitError
from peftkit.families import FAMILIES, Family, check, family_of
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


def test_the_others_keep_their_family(toy):
    assert family_of(AutoConfig.for_model("llama")) is FAMILIES["decoder"]
    with pytest.raises(PeftkitError, match=r"^here: t5 is an encoder-decoder.* work\. t5 is no toy encoder\.$"):
        check(AutoConfig.for_model("t5"), "here")
