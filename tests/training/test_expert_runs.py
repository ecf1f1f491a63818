"""Runs on mixtures of experts whose stacks are packed: planned, trained, resumed, loaded and evaluated."""

from __future__ import annotations

import json
import logging
import signal
from typing import Any

import pytest
import torch
from small_runs import write_documents
from test_session import Stops, records

import zoo
from peftkit import recipe as recipes
from peftkit.adaptation import attach, notices
from peftkit.estimation.process import loading_memory
from peftkit.evaluation import answer
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, quantize
from peftkit.plan import plan
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.training import Interrupted, session, train

FAMILIES = ("mixtral", "gpt_oss")
METHOD = [{"lora": {"rank": 2, "targets": ["o", "experts"]}}]
NF4 = {"format": "nf4", "block_size": 16}


@pytest.fixture(scope="module", params=FAMILIES)
def keys(request, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    return {
        "model": str(zoo.write(folder / "base", request.param)),
        "method": METHOD,
        "quantization": NF4,
        "dataset": {"name": "text", "path": str(write_documents(folder / "data"))},
        "generation": {"max_new_tokens": 8},
        "train": {"learning_rate": 0.01, "batch_examples": 4, "max_length": 64, "device": "cpu", "max_steps": 6},
    }


def test_it_trains_resumes_bit_for_bit_and_answers(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)
    chosen = recipes.load(keys)
    foretold = plan(chosen)
    assert not [line for line in foretold.notices if "stacks" in line]
    summary = train(chosen, tmp_path / "whole")
    assert summary.losses["last"] < summary.losses["first"]
    assert (summary.trainable_parameters, summary.total_parameters) == (foretold.trainable, foretold.total)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(4, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    base = json.loads((tmp_path / "whole" / "adapter" / "adapter.json").read_text())["base"]
    assert base["quantization"]["format"] == "nf4"
    assert base["fingerprint"] == load(chosen.model).fingerprint
    assert answer(tmp_path / "whole", "red") != answer(tmp_path / "whole", "red", base=True)


def test_a_plan_tells_the_bytes_of_packed_stacks(keys):
    chosen = recipes.load(keys)
    foretold = plan(chosen).memory
    loaded = load(chosen.model, quantization=chosen.quantization)
    own = (*loaded.module.parameters(), *loaded.module.buffers())
    frozen = sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in own}.values())
    assert foretold.parts["weights"] == frozen + foretold.parts["gradients"]
    plain = plan(recipes.load({**keys, "quantization": "none"})).memory
    assert foretold.parts["weights"] < 0.6 * plain.parts["weights"]
    # A stack that is made in each pass is not kept.
    stacks = sum(site.inputs * site.outputs * site.experts * 4 for site in Layout(loaded.module).stacks)
    assert foretold.unknown is None
    assert plain.parts["activations"] - foretold.parts["activations"] > 0.75 * stacks
    outline = load(chosen.model, device="meta", dtype=torch.float32, weights=False, quantization=chosen.quantization)
    largest = max(m.in_features * m.out_features * 4 for m in loaded.module.modules() if isinstance(m, PackedLinear))
    assert loading_memory(outline) < frozen + 8 * largest + 4 * 300 * 32


def test_what_a_format_leaves_dense_is_told_once(caplog):
    model = zoo.build("mixtral")
    quantize(model, Quantization(QUANTIZERS["nf4"](), {"experts": None}))
    lora = METHODS["lora"].from_options({})
    with caplog.at_level(logging.INFO, logger="peftkit"):
        attach(model, [lora, METHODS["layernorm-tuning"].from_options({})])
    told = [record.message for record in caplog.records if "quantization covers" in record.message]
    assert len(told) == 1
    assert told[0].startswith("quantization covers 1")
    assert told[0].endswith(
        "% of the weights of the layers: stacks such as model.layers.0.mlp.experts stay as they were"
    )
    whole = zoo.build("mixtral")
    assert not [line for line in notices([lora], Layout(whole)) if "quantization" in line]
    quantize(whole, Quantization(QUANTIZERS["nf4"]()))
    assert not [line for line in notices([lora], Layout(whole)) if "quantization" in line]
