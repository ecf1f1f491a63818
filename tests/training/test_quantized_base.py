"""A run on a checkpoint that bitsandbytes has quantized: planned, trained, resumed, evaluated and asked."""

from __future__ import annotations

import json
import signal

import pytest
from quantized_checkpoints import write_bitsandbytes
from small_runs import write_documents
from test_session import Stops, records

from peftkit import recipe
from peftkit.errors import PeftkitError
from peftkit.evaluation import answer
from peftkit.models.load import load
from peftkit.plan import plan
from peftkit.training import Interrupted, session, train


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    model = write_bitsandbytes(folder / "nf4", "nf4")
    return {
        "model": str(model),
        "method": ["lora", {"serial-adapter": {"bottleneck": 128}}],
        "dataset": {"name": "text", "path": str(write_documents(folder / "data"))},
        "generation": {"max_new_tokens": 16},
        "train": {
            **{"learning_rate": 0.01, "batch_examples": 4, "max_length": 64, "device": "cpu", "max_steps": 12},
            "optimizer": "adamw-8bit",
        },
    }


def test_it_trains_resumes_bit_for_bit_and_answers(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)
    chosen = recipe.load(keys)
    foretold = plan(chosen)
    summary = train(chosen, tmp_path / "whole")
    assert summary.losses["last"] < summary.losses["first"]
    assert (summary.trainable_parameters, summary.total_parameters) == (foretold.trainable, foretold.total)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(5, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    base = json.loads((tmp_path / "whole" / "adapter" / "adapter.json").read_text())["base"]
    assert base["quantization"]["format"] == "bitsandbytes"
    assert base["fingerprint"] == load(chosen.model).fingerprint
    assert answer(tmp_path / "whole", "red") != answer(tmp_path / "whole", "red", base=True)


def test_quantizing_it_again_is_refused_before_the_run(keys, tmp_path):
    with pytest.raises(PeftkitError, match="quantized already"):
        plan(recipe.load(keys | {"quantization": "nf4"}))
