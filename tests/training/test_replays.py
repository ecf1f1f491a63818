"""Recorded passes: micro-batches of a few shapes, played with the losses of those that are computed one by one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import flash_kernel
import pytest
import torch

from peftkit.adaptation import attach
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, choose
from peftkit.engine.steady import PREDICTIONS, TOKENS, steady
from peftkit.kernels import fused_attention, varlen_attention
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers
from peftkit.recipe import TrainSection
from peftkit.training import replays
from peftkit.training.loop import Loop
from peftkit.training.replays import Recorder, Replays, possible

CPU = torch.device("cpu")


def rows(count: int = 48) -> list[Encoded]:
    """Texts of 10 to 30 tokens whose beginnings differ."""
    draw = torch.Generator().manual_seed(5)
    found = []
    for number in range(count):
        ids = torch.randint(3, 90, (10 + number * 7 % 21,), generator=draw).tolist()
        found.append(Encoded(ids, [-100] * 4 + ids[4:]))
    return found


def make_loop(method: str, **train: Any) -> Loop:
    torch.manual_seed(0)
    model = tiny("llama")
    adaptation = attach(model, [METHODS[method].from_options({})], seed=3)
    section = TrainSection(learning_rate=0.01, max_steps=12, batch_examples=4, **train)
    batches, (engine, told) = Batches(rows(), batch_examples=4), choose(model, rows(), 0, CPU, Arrangement())
    assert not told
    return Loop(model, adaptation, batches, section, pad_id=0, device=CPU, engine=engine)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch):
    """Attend as on a GPU, where what is seen is read from tensors."""
    monkeypatch.setattr(varlen_attention, "_FORWARD", flash_kernel.forward)
    monkeypatch.setattr(varlen_attention, "_BACKWARD", flash_kernel.backward)
    monkeypatch.setattr(varlen_attention, "possible", lambda *given: True)
    monkeypatch.setattr(fused_attention, "possible", lambda *given: False)


def recorder(monkeypatch, play: Any = lambda work: work) -> list[int]:
    """Record by keeping the work, and play it by doing it on what its inputs hold then; returns what counts plays."""
    played: list[int] = []

    def record(self, work):
        again = play(work)

        def counted() -> None:
            played.append(1)
            again()

        return counted

    monkeypatch.setattr(Recorder, "record", record)
    return played


@pytest.mark.parametrize(
    ("method", "accumulation"),
    [("lora", 1), ("lora", 3), ("dora", 1), ("ia3", 1), ("layernorm-tuning", 1), ("serial-adapter", 1), ("lora-fa", 1)],
)
def test_losses_are_those_of_computed_passes(monkeypatch, method, accumulation):
    played = recorder(monkeypatch)
    plain, fast = (make_loop(method, accumulation=accumulation) for _ in range(2))
    fast.replays = Replays(fast)
    told: list[str] = []
    fast.replays.tell = told.append
    for step in range(8):
        one, two = plain.run_step(), fast.run_step()
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5), step
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4), step
    assert not told
    assert len(played) > 3
    assert 1 <= len(fast.replays.recorded) <= 3


def test_a_step_may_have_played_and_computed_passes(monkeypatch):
    recorder(monkeypatch)
    plain, fast = (make_loop("lora", accumulation=4) for _ in range(2))
    fast.replays = Replays(fast)
    chosen = fast.replays.run
    turn = iter([True, True, True, False, True, False, False, True] * 20)
    monkeypatch.setattr(fast.replays, "run", lambda laid, trained: chosen(laid, trained) if next(turn) else None)
    for _ in range(8):
        assert fast.run_step()["loss"] == pytest.approx(plain.run_step()["loss"], rel=1e-5)


def test_shapes_beyond_the_most_run_as_they_are_and_it_is_said_once(monkeypatch):
    played = recorder(monkeypatch)
    monkeypatch.setattr(replays, "MOST", 0)
    plain, fast = (make_loop("lora") for _ in range(2))
    fast.replays = Replays(fast)
    told: list[str] = []
    fast.replays.tell = told.append
    for _ in range(4):
        assert fast.run_step()["loss"] == plain.run_step()["loss"]
    assert not played
    assert told == ["train.cuda_graphs: 0 shapes of micro-batches are recorded, and others run as they are."]


def refusing(work):
    raise RuntimeError("operation not permitted when stream is capturing")


def doing_it_twice(work):
    def again() -> None:
        work()
        work()

    return again


@pytest.mark.parametrize(
    ("play", "why"), [(refusing, "not permitted when stream is capturing"), (doing_it_twice, "differs")]
)
def test_what_cannot_be_recorded_rightly_runs_as_it_is_and_says_so_once(monkeypatch, play, why):
    recorder(monkeypatch, play)
    plain, fast = (make_loop("lora") for _ in range(2))
    fast.replays = Replays(fast)
    told: list[str] = []
    fast.replays.tell = told.append
    for _ in range(8):
        assert fast.run_step()["loss"] == pytest.approx(plain.run_step()["loss"], rel=1e-5)
    assert len(told) == 1
    assert why in told[0]


def test_beginnings_in_common_are_played_too(monkeypatch):
    played = recorder(monkeypatch)
    loops = [make_loop("lora") for _ in range(2)]
    begun = [[5] * 20 + [6 + number % 3] * (9 if number % 4 else 0) for number in range(48)]
    pairs = zip(begun, rows(), strict=True)
    mine = [Encoded(start + row.ids, [-100] * len(start) + row.labels) for start, row in pairs]
    for loop in loops:
        loop.batches = Batches(mine, batch_examples=4)
    loops[1].replays = Replays(loops[1])
    for _ in range(10):
        one, two = (loop.run_step() for loop in loops)
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert two["shared_tokens_saved"] > 0
    assert len(played) >= 9


@pytest.mark.parametrize("method", ["adalora", "diff-pruning"])
def test_methods_that_change_with_the_steps_are_left_alone(method):
    loop = make_loop(method)
    assert possible(loop) == "the device is no GPU"
    loop.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    why = possible(loop)
    assert why is not None
    assert "changes with the steps" in why


@pytest.mark.parametrize("wanted", [True, False])
def test_a_recipe_that_asks_in_vain_is_told_why(wanted):
    loop, told = make_loop("lora", cuda_graphs=wanted), []
    assert Replays.of(loop, told.append) is None
    assert told == (["train.cuda_graphs: steps run as without it, since the device is no GPU."] if wanted else [])


@pytest.mark.parametrize("method", ["lora", "dora", "lora-fa"])
def test_no_graph_of_a_pass_is_left_behind(method):
    """What adds a gradient belongs to the stream of the pass in whose graph it was made."""
    loop = make_loop(method)
    batch = loop.engine.lay(loop.batches.collate([0, 1, 2, 3], 0))
    for work in (lambda: loop.passes(batch, 7), lambda: loop.gradients(batch, torch.ones(()), loop.parameters)):
        work()
        nodes = [torch.autograd.graph.get_gradient_edge(parameter).node for parameter in loop.parameters]
        for node in nodes:
            node.metadata["mark"] = True
        del node, nodes
        edges = (torch.autograd.graph.get_gradient_edge(parameter) for parameter in loop.parameters)
        assert not any("mark" in edge.node.metadata for edge in edges)
        work()
        edges = (torch.autograd.graph.get_gradient_edge(parameter) for parameter in loop.parameters)
        assert not any("mark" in edge.node.metadata for edge in edges)


@pytest.mark.parametrize("shared", [0, 20])
def test_filling_up_changes_neither_loss_nor_gradient(shared):
    loop = make_loop("lora")
    start = list(range(3, 3 + shared))
    loop.batches = Batches([Encoded(start + r.ids, [-100] * shared + r.labels) for r in rows()], batch_examples=4)
    batch = loop.batches.collate([0, 1, 2, 3], 0)
    laid = loop.engine.lay(batch)
    filled = steady(laid, CPU)
    assert filled is not None
    assert filled.laid.inputs["input_ids"].shape[1] % TOKENS == 0
    assert len(filled.laid.targets) % PREDICTIONS == 0
    found = []
    for one in (laid, filled.laid):
        found.append([loop.passes(one, 7), *(parameter.grad.clone() for parameter in loop.parameters)])
        loop.optimizer.zero_grad(set_to_none=True)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def on_gpu(method: str, fast: bool) -> tuple[Loop, list[str]]:
    """Build a loop on the GPU whose frozen weights are held in bf16, and the list of what it tells."""
    device, loop, told = torch.device("cuda"), make_loop(method), []
    loop.model.to(device, torch.bfloat16)
    for _, parameter in loop.adaptation.parameters():
        parameter.data = parameter.data.float()
    loop.device = device
    loop.optimizer = Optimizers(loop.adaptation.groups(0.01, 0.0), betas=(0.9, 0.999), eps=1e-8, default="adamw")
    if fast:
        loop.replays = Replays(loop)
        loop.replays.tell = told.append
    return loop, told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "serial-adapter", "lora-fa"])
def test_a_gpu_plays_what_it_computes(monkeypatch, method):
    monkeypatch.undo()
    found = []
    for fast in (False, True):
        loop, told = on_gpu(method, fast)
        found.append([loop.run_step()["loss"] for _ in range(12)])
        assert not told
        assert loop.replays is None or loop.replays.recorded
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_resumes_bit_for_bit(monkeypatch):
    monkeypatch.undo()
    whole, first, second = (on_gpu("lora", True)[0] for _ in range(3))
    losses = [whole.run_step()["loss"] for _ in range(12)]
    begun = [first.run_step()["loss"] for _ in range(5)]
    parts, facts = first.state()
    second.load_state({name: {key: x.clone() for key, x in part.items()} for name, part in parts.items()}, facts)
    assert begun + [second.run_step()["loss"] for _ in range(7)] == losses
    for one, two in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(one, two)
