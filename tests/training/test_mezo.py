"""Steps from two losses and a seed: the direction, what is put back, replays, and what is not held."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from draw import marked, share
from small_runs import make_recipe
from test_loop import Fixed, make_loop, rows
from torch import nn

from peftkit import recipe
from peftkit.engine.counts import Counts
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.passes import BACKWARD, FORWARD, Result
from peftkit.errors import PeftkitError
from peftkit.estimation.step import run_step
from peftkit.method import METHODS
from peftkit.plan import plan
from peftkit.profiling import profile
from peftkit.strategies import Diverged, Update
from peftkit.strategies.mezo import MeZO, directions, seed_of
from peftkit.training.session import train

OWN_OPTIMIZER = "galore"
"""The method that is its optimizer, and nothing without."""
ROUNDING = 40 * torch.finfo(torch.float32).eps * 5 / 2e-3
"""Of a projected gradient: some roundings of losses of about 5, over 2 epsilon."""


class Quadratic:
    """Stands for the passes over a model whose loss is half of x A x."""

    def __init__(self, dtype: torch.dtype = torch.float64, size: int = 6):
        root = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.matrix = (root @ root.T).to(dtype)
        start = torch.randn(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        self.x = nn.Parameter(start.to(dtype))
        group = {"params": [self.x], "lr": 0.0, "weight_decay": 0.1}
        self.optimizer: Any = SimpleNamespace(param_groups=[group], zero_grad=self._drop)
        nothing: Any = lambda *steps: None  # noqa: E731
        self.adaptation: Any = SimpleNamespace(penalty=nothing, after_backward=nothing, after_step=nothing)

    def _drop(self, set_to_none: bool) -> None:
        self.x.grad = None

    def evaluate(self, batches: Any, *, as_trained: bool = False) -> Result:
        loss = (0.5 * self.x @ self.matrix @ self.x).item()
        return Result(loss, 1, Counts(1, 1), {})

    def update(self, step: int, clip: float | None = None) -> Update:
        return Update(self.adaptation, self.optimizer, [self.x], clip, 7, step, 1000, 0.0)


def test_the_direction_is_the_gradient_on_average():
    """Of g z, with g = z grad exactly, the mean is grad and the variance of an entry |grad|² + grad_i²."""
    small, count = Quadratic(), 4000
    passes: Any = small
    gradient = small.matrix @ small.x.detach()
    total = torch.zeros_like(gradient)
    for step in range(count):
        update = small.update(step)
        facts = MeZO().step(passes, [], 1, update).result.facts
        ((_, z),) = directions(update, facts["seed"])
        assert facts["projected_gradient"] == pytest.approx((z @ gradient).item(), rel=1e-6, abs=1e-6)
        total += facts["projected_gradient"] * z
    deviation = ((gradient @ gradient + gradient**2) / count).sqrt()
    assert ((total / count - gradient).abs() < 5 * deviation).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_come_back_whatever_is_added_to_them(dtype: torch.dtype):
    """A thousand steps at a rate of 0 leave every bit as it was."""
    small = Quadratic(dtype)
    passes: Any = small
    before = small.x.detach().clone()
    for step in range(1000):
        MeZO().step(passes, [], 1, small.update(step))
    assert torch.equal(small.x, before)
    assert small.x.grad is None


def test_parameters_come_back_where_a_loss_cannot_be_had(monkeypatch: pytest.MonkeyPatch):
    small = Quadratic()
    passes: Any = small
    before = small.x.detach().clone()
    monkeypatch.setattr(small, "evaluate", lambda *_, **__: Result(float("nan"), 1, Counts(1, 1), {}))
    with pytest.raises(Diverged):
        MeZO().step(passes, [], 1, small.update(0))
    assert torch.equal(small.x, before)


def test_clip_bounds_the_projected_gradient_and_the_log_tells_it_unbounded():
    small = Quadratic()
    passes: Any = small
    free, bounded = (MeZO().step(passes, [], 1, small.update(0, clip)) for clip in (None, 1e-3))
    assert abs(free.result.facts["projected_gradient"]) == free.norm == bounded.norm > 1e-3
    assert abs(bounded.result.facts["projected_gradient"]) == 1e-3


def zeroth_order(method: str = "lora", batches: Any = None, **train: Any) -> Any:
    options = {"strategy": {"mezo": {"rate_factor": 1.0}}, "learning_rate": 0.02, "clip": None, "max_steps": 200}
    torch.manual_seed(4)
    return make_loop(method, batches, **{**options, **train})


HELD = [name for name in METHODS.names() if name != OWN_OPTIMIZER]


@pytest.mark.parametrize("method", marked(HELD, share("mezo", HELD)))
def test_every_method_moves_what_it_trains_alone(method: str):
    loop = zeroth_order(method)
    trained = {id(parameter) for parameter in loop.parameters}
    before = {name: p.detach().clone() for name, p in loop.adaptation.model.named_parameters()}
    assert loop.run_step()["projected_gradient"] != 0
    moved = {name for name, p in loop.adaptation.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(id(p) in trained for name, p in loop.adaptation.model.named_parameters() if name in moved)
    assert all(parameter.grad is None for parameter in loop.parameters)


def test_a_method_that_is_its_own_optimizer_is_refused():
    with pytest.raises(PeftkitError, match=f"'mezo' takes its steps without an optimizer.*'{OWN_OPTIMIZER}'"):
        zeroth_order(OWN_OPTIMIZER)


def test_it_learns():
    """At half and at twice the rate it does too."""
    loop = zeroth_order(learning_rate=0.01, batch_examples=12, max_steps=300, schedule="constant", warmup=0.0)
    losses = [loop.run_step()["loss"] for _ in range(300)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_accumulated_micro_batches_equal_one_large_batch():
    small = Fixed(rows(6), [[0, 1], [2, 3], [4, 5]])
    large = Fixed(rows(6), [[0, 1, 2, 3, 4, 5]])
    one, other = zeroth_order(batches=small, accumulation=3), zeroth_order(batches=large)
    first, second = one.run_step(), other.run_step()
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert first["projected_gradient"] == pytest.approx(second["projected_gradient"], abs=ROUNDING)


@pytest.mark.parametrize("arrangement", [Arrangement(), Arrangement(share=False)], ids=str)
def test_packed_rows_give_the_step_of_padded_ones(arrangement: Arrangement):
    padded, packed = zeroth_order(batch_examples=12), zeroth_order(batch_examples=12)
    plain = packed.passes.plain
    plain.engine = Engine(plain.engine.model, arrangement)
    first, second = padded.run_step(), packed.run_step()
    assert second["padding_tokens_saved"] > 0
    assert first["projected_gradient"] == pytest.approx(second["projected_gradient"], abs=ROUNDING)


def test_a_log_replays_the_run_bit_for_bit():
    """The seeds and projected gradients, as the log's JSON holds them, are the whole run."""
    loop, other = zeroth_order(weight_decay=0.1), zeroth_order(weight_decay=0.1)
    records = [json.loads(json.dumps(loop.run_step())) for _ in range(12)]
    assert [record["seed"] for record in records] == [seed_of(42, step) for step in range(12)]
    for step, record in enumerate(records):
        pending = other.next()
        assert record["lr"] == pending.rate
        update = Update(other.adaptation, other.optimizer, other.parameters, None, 42, step, other.steps, pending.rate)
        other.strategy.follow(update, record["seed"], record["projected_gradient"])
        other.step += 1
    wanted = loop.adaptation.state()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in other.adaptation.state().items())


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    given = {"max_steps": 6, "strategy": "mezo", "save_every": 3}
    whole = recipe.load(make_recipe(tmp_path, "lora", **given))
    train(whole, tmp_path / "whole")
    run = tmp_path / "cut"
    train(whole, run)
    for path in (run / "summary.json", *(run / "checkpoints").glob("step-00000006")):
        path.rename(tmp_path / path.name)
    train(whole, run, resume=True)
    contents = [(folder / "adapter" / "adapter.safetensors").read_bytes() for folder in (tmp_path / "whole", run)]
    assert contents[0] == contents[1]


def test_nothing_is_saved_for_a_backward_pass_and_no_state_is_made():
    def saved(loop: Any) -> int:
        counted = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal counted
            counted += tensor.nbytes
            return tensor

        engine = loop.passes.plain.engine
        forward = engine.forward

        def watched(*given: Any) -> Any:
            # Within the engine's own hooks, which would go before others.
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return forward(*given)

        engine.forward = watched
        loop.run_step()
        return counted

    loop = zeroth_order()
    assert saved(loop) == 0 < saved(make_loop("lora"))
    assert loop.optimizer.state() == {}


def test_the_estimate_knows_what_is_not_there(tmp_path):
    standard, other = (
        plan(recipe.load(make_recipe(tmp_path, "lora", max_steps=1, strategy=strategy))).memory
        for strategy in ("standard", "mezo")
    )
    absent = ("optimizer", "gradients", "activations")
    assert [other.parts[name] for name in absent] == [0, 0, 0] == [other.at_peak[name] for name in absent]
    assert min(standard.parts[name] for name in absent) > 0


def test_a_step_is_estimated_below_one_with_a_backward_pass():
    loop = zeroth_order()
    batch, model = loop.batches.collate([0, 1, 2], 0), loop.adaptation.model
    given = model, loop.adaptation, batch, loop.section, loop.device, "fp32"
    forward, both = (run_step(*given, backward=backward) for backward in (False, True))
    trained = sum(parameter.nbytes for parameter in loop.parameters)
    assert forward.at_peak["gradients"] == forward.activations == 0
    assert sum(forward.at_peak.values()) + trained < sum(both.at_peak.values())


def test_a_profile_tells_of_passes_forward_alone(tmp_path):
    measured = profile(recipe.load(make_recipe(tmp_path, "lora", max_steps=9, strategy="mezo")), steps=1)
    assert measured.saved == 0 == measured.phases[BACKWARD]
    assert measured.phases[FORWARD] > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "adamw-8bit"),
        ("betas", [0.5, 0.9]),
        ("eps", 1e-6),
        ("compile", True),
        ("memory", "auto"),
        ("gradient_checkpointing", True),
    ],
)
def test_a_key_that_says_nothing_is_refused_by_name(tmp_path, key: str, value: Any):
    given = make_recipe(tmp_path, "lora", max_steps=1, strategy="mezo", **{key: value})
    with pytest.raises(PeftkitError, match=f"train.{key}: found .*the strategy 'mezo' has no use for it"):
        recipe.load(given)
