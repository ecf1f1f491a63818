"""What a profile says is so: a planted owner is found with its bytes, own times add up, files are whole."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit import adapt
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.profiling.profile import measure, own_times, place
from peftkit.profiling.watch import OUTSIDE, Interval
from peftkit.recipe import TrainSection
from peftkit.training.loop import Loop

TOKENS = 3 * 20


class Hoards(torch.autograd.Function):
    """The identity, which keeps something much wider than its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.new_ones(*x.shape[:-1], 1000))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Planted(nn.Module):
    """Stands behind a feed-forward block and hoards."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return Hoards.apply(self.inner(x))  # type: ignore[return-value]


def loop(model: Any) -> Loop:
    adaptation = adapt.attach(model, [METHODS["lora"].from_options({"targets": ["q", "v"]})])
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 96, (20,), generator=generator).tolist() for _ in range(3)]
    batches = Batches([Encoded(row, row) for row in rows], batch_examples=3)
    section = TrainSection(batch_examples=3, max_steps=20)
    engine = Engine(model, Arrangement())
    return Loop(model, adaptation, batches, section, pad_id=0, device=torch.device("cpu"), engine=engine)


def test_a_planted_hoarder_is_the_largest_owner_with_its_bytes():
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp = Planted(layer.mlp)
    found = measure(loop(model), 1)
    assert found.owners[0] == ("model.layers.*.mlp", 2 * TOKENS * 1000 * 4)
    assert dict(found.paths)["model.layers.1.mlp"] == TOKENS * 1000 * 4
    assert measure(loop(tiny("llama")), 1).owners[0][0] != "model.layers.*.mlp" or found.saved > 2 * TOKENS * 1000 * 4


def test_weights_are_not_kept_and_what_the_head_makes_is_outside():
    found = measure(loop(tiny("llama", vocab_size=4096)), 1)
    sizes = dict(found.owners)
    assert OUTSIDE in sizes
    assert all(size < 4096 * 32 * 4 for size in sizes.values())


def test_times_of_modules_hold_those_within_them():
    found = measure(loop(tiny("llama")), 2)
    lines = {line.place: line for line in found.lines}
    layer, attention = lines["model.layers.*"], lines["model.layers.*.self_attn"]
    assert layer.calls == 2
    assert attention.forward < layer.forward < lines["model"].forward
    assert 0 < layer.own < layer.forward + layer.backward
    assert layer.backward > 0


def test_own_time_is_what_is_left_of_the_modules_within():
    inner, second = Interval("a.b", "forward", 1.0, 2.0, 1), Interval("a.c", "forward", 2.0, 2.5, 1)
    outer = Interval("a", "forward", 0.0, 4.0, 0)
    assert own_times([inner, second, outer]) == [(inner, 1.0), (second, 0.5), (outer, 2.5)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("model.layers.11.mlp", "model.layers.*.mlp"), ("h.0", "h.*"), ("lm_head", "lm_head"), ("a.b2.c", "a.b2.c")],
)
def test_places_name_no_layer(path: str, expected: str):
    assert place(path) == expected


def test_files_are_written_whole(tmp_path: Path):
    found = measure(loop(tiny("llama")), 1)
    paths = {path.name: path for path in found.write(tmp_path)}
    assert json.loads(paths["profile.json"].read_text())["owners"]
    events = json.loads(paths["trace.json"].read_text())["traceEvents"]
    assert {event["cat"] for event in events} == {"forward", "backward"}
    root = ElementTree.fromstring(paths["flame.svg"].read_text())
    assert root.tag.endswith("svg")
