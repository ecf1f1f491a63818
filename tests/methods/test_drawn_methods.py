"""Methods that draw by step and place: a run that goes on is the run that never stopped, bit for bit."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.data.batches import Batches, Epoch
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.objectives import OBJECTIVES
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop

TEXTS = [[20, 21, 40, 41, 42], [20, 21, 40, 41, 50], [20, 21, 40], [7, 8, 9, 10], [30, 7], [60, 61, 62, 63, 64]]
METHODS_HERE = {
    "adapterdrop": {},
    "adamix": {"copies": 3, "shared": "none"},
    "sparseadapter": {"score": "snip"},
    "propetl": {},
    "adaptive-lr-reg": {"reg": ["l2sp", "dropout", "agreement"], "band": [0.0, 0.05]},
    "kadaptation": {"dropout": 0.3},
}


def looped(name, resumed=False):
    encoded = [Encoded(ids, [-100, *ids[1:]]) for ids in TEXTS]
    method = METHODS[name].from_options(METHODS_HERE[name])
    adaptation = attach(tiny("llama"), [method], seed=1, loading=resumed)
    batches = Batches(encoded, batch_examples=3)
    if not resumed:
        torch.manual_seed(1)
        adaptation.prepare(Epoch(batches, 0, 0))
    section = TrainSection(batch_examples=3, schedule="constant", max_steps=4, epochs=None, learning_rate=0.01)
    torch.manual_seed(1)
    objective = OBJECTIVES["cross-entropy"]()
    engine = Engine(adaptation.model, Arrangement())
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=torch.device("cpu"), objective=objective)


@pytest.mark.parametrize("name", METHODS_HERE)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(name):
    whole = looped(name)
    losses = [whole.run_step()["loss"] for _ in range(2)]
    parts, facts = whole.state()
    parts = {part: {key: tensor.clone() for key, tensor in tensors.items()} for part, tensors in parts.items()}
    losses = [whole.run_step()["loss"] for _ in range(2)]
    again = looped(name, resumed=True)
    again.load_state(parts, facts)
    assert [again.run_step()["loss"] for _ in range(2)] == losses
    one, other = whole.adaptation.state(), again.adaptation.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
