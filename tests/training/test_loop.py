from __future__ import annotations

from typing import Any

import pytest
import torch
from combinations import decoder
from draw import marked, share
from facts import facts

from peftkit.adaptation import attach
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded, insert
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.memory_plan import checkpoint_gradients
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.recipe import TrainSection
from peftkit.training import nesting
from peftkit.training.loop import Loop

STEADY = [name for name in METHODS.names() if not facts(name).random_in_training]


def rows(count: int = 12) -> list[Encoded]:
    """Rows of unequal length of which unequal parts are trained."""
    generator = torch.Generator().manual_seed(3)
    result = []
    for number in range(count):
        ids = torch.randint(3, 96, (4 + number % 5,), generator=generator).tolist()
        prompt = number % 3
        result.append(Encoded(ids, [-100] * prompt + ids[prompt:]))
    return result


def make_loop(
    method: str = "full", batches: Any = None, precision: str = "fp32", model: Any = None, **train: Any
) -> Loop:
    section = TrainSection(**{"learning_rate": 0.01, "batch_examples": 2, "max_steps": 4, **train})
    model = model or decoder((method,))
    adaptation = attach(model, [METHODS[method].from_options({})])
    batches = batches or Batches(rows(), batch_examples=section.batch_examples, seed=section.seed)
    inner = batches.batches if isinstance(batches, Fixed) else batches
    inner.encoded = [insert(row, adaptation.soft_ids, 0) for row in inner.encoded]
    engine, device = Engine(model, Arrangement(flat=False)), torch.device("cpu")
    return nesting.make_loop(engine, adaptation, batches, section, pad_id=0, device=device, precision=precision)


class Fixed:
    """Hands out the given micro-batches in order, in every epoch."""

    def __init__(self, encoded: list[Encoded], plan: list[list[int]]):
        self.batches = Batches(encoded, batch_examples=1)
        self.fixed = plan

    def plan(self, epoch: int) -> list[list[int]]:
        return self.fixed

    def collate(self, indices: list[int], pad_id: int) -> Any:
        return self.batches.collate(indices, pad_id)


@pytest.mark.parametrize("method", marked(STEADY, share("accumulated", STEADY)))
def test_accumulated_micro_batches_equal_one_large_batch(method: str):
    """Eleven rows: windows of 3 × 2, 2 + 2 + 1 (partial) against whole batches of 6 and 5."""
    small = Fixed(rows(11), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]])
    large = Fixed(rows(11), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])
    # Adam divides by gradients that are zero but for rounding, as those of a bias that attention cancels.
    one = make_loop(method, small, accumulation=3, max_steps=4, eps=1e-3)
    other = make_loop(method, large, accumulation=1, max_steps=4, eps=1e-3)
    for _ in range(4):
        first, second = one.run_step(), other.run_step()
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
        for key in ("step", "epoch", "lr", "tokens", "trained_tokens"):
            assert first[key] == second[key]


def test_partial_last_window_is_normalised_by_its_own_tokens():
    """Two micro-batches and a window of three: the same as a window of two."""
    plan = Fixed(rows(4), [[0, 1], [2, 3]])
    clocks = {"tokens_per_s": 0, "trained_tokens_per_s": 0, "memory": 0}
    loops = [make_loop(batches=plan, accumulation=accumulation) for accumulation in (3, 2)]
    assert loops[0].run_step() | clocks == loops[1].run_step() | clocks


@pytest.mark.parametrize("method", marked(METHODS.names(), share("same recipe", METHODS.names())))
def test_same_recipe_gives_the_same_losses(method: str):
    def losses() -> list[float]:
        torch.manual_seed(1)
        loop = make_loop(method, max_steps=6)
        return [loop.run_step()["loss"] for _ in range(6)]

    first = losses()
    assert first == losses()
    assert first[-1] != first[0]


@pytest.mark.parametrize("method", marked(METHODS.names(), share("only what", METHODS.names())))
def test_only_what_is_trainable_moves_also_under_checkpointing(method: str):
    losses = []
    for checkpointing in (False, True):
        model = decoder((method,))
        if checkpointing:
            checkpoint_gradients(model)
        torch.manual_seed(3)
        # Of forty steps the first three are before any schedule begins.
        loop = make_loop(method, model=model, max_steps=40)
        trainable = {id(parameter) for _, parameter in loop.adaptation.parameters()}
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        losses.append([loop.run_step()["loss"] for _ in range(3)])
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (id(parameter) not in trainable), name
            assert parameter.grad is None
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_loss_per_token_of_the_first_step_is_that_of_the_model():
    loop = make_loop(batches=Fixed(rows(2), [[0, 1]]))
    batch = loop.batches.collate([0, 1], 0)
    with torch.no_grad():
        plain = loop.adaptation.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
    record = loop.run_step()
    assert record["loss"] == pytest.approx(plain.item(), abs=1e-5)
    assert (record["tokens"], record["trained_tokens"]) == (4 + 5, 3 + 4)


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    def moved(clip: float | None) -> tuple[float, list[torch.Tensor]]:
        loop = make_loop(clip=clip)
        seen: list[torch.Tensor] = []
        step = loop.optimizer.step
        loop.optimizer.step = lambda: (seen.extend(p.grad.clone() for p in loop.parameters), step())  # type: ignore
        return loop.run_step()["grad_norm"], seen

    norm, gradients = moved(None)
    clipped_norm, clipped = moved(norm / 2)
    assert clipped_norm == norm
    assert torch.cat([g.flatten() for g in gradients]).norm().item() == pytest.approx(norm, rel=1e-5)
    assert torch.cat([g.flatten() for g in clipped]).norm().item() == pytest.approx(norm / 2, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(value: float):
    loop = make_loop()
    loop.run_step()
    loop.parameters[-1].data[0] = value
    before = [parameter.detach().clone() for parameter in loop.parameters]
    with pytest.raises(PeftkitError, match=r"the (loss|gradient norm) is (nan|inf) at step 2 of 4 .*learning_rate"):
        loop.run_step()
    assert all(a.equal(b) or b.isnan().any() for a, b in zip(loop.parameters, before, strict=True))
    assert loop.step == 1


@pytest.mark.parametrize("text", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "another fault"])
def test_want_of_memory_is_told_and_other_faults_are_not_hidden(text: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(Plain, "loss", fail)
    allocation = "memory" in text
    with pytest.raises(PeftkitError if allocation else RuntimeError, match="batch_tokens" if allocation else text):
        make_loop().run_step()


def test_batch_that_trains_nothing_gives_zero():
    loop = make_loop(batches=Fixed([Encoded([5, 6, 7], [-100] * 3)], [[0]]))
    record = loop.run_step()
    assert (record["loss"], record["grad_norm"], record["trained_tokens"]) == (0.0, 0.0, 0)


def test_bf16_autocast_on_the_cpu_is_close_to_fp32():
    plain = [make_loop().run_step()["loss"], make_loop(precision="bf16").run_step()["loss"]]
    assert plain[0] != plain[1]
    assert plain[0] == pytest.approx(plain[1], abs=0.05)


def test_evaluation_is_exact_and_leaves_the_run_alone():
    loop = make_loop()
    batches = Batches(rows(5), batch_examples=2)
    whole = loop.batches.collate([0, 1, 2, 3, 4], 0)
    with torch.no_grad():
        plain = loop.adaptation.model(
            input_ids=whole.input_ids, attention_mask=whole.attention_mask, labels=whole.labels
        ).loss
    random = torch.get_rng_state()
    assert loop.evaluate(batches).loss == pytest.approx(plain.item(), abs=1e-5)
    assert torch.equal(random, torch.get_rng_state())
    assert loop.adaptation.model.training


def test_learning_rate_follows_the_schedule_and_the_method_default():
    loop = make_loop(learning_rate=None, schedule="linear", warmup=0.0)
    default = METHODS["full"].default_learning_rate
    assert [loop.run_step()["lr"] for _ in range(4)] == pytest.approx([default * part for part in (1, 0.75, 0.5, 0.25)])


def test_adapters_see_the_step_from_its_start_and_after_resuming():
    seen = []

    def watched() -> Loop:
        loop = make_loop("lora")
        context, take = loop.adaptation.context, loop.passes.backward
        loop.passes.backward = lambda *given: (seen.append(context.step), take(*given))[1]  # type: ignore[method-assign]
        return loop

    first, second = watched(), watched()
    for _ in range(2):
        first.run_step()
    second.load_state(*first.state())
    second.run_step()
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS.names())
def test_state_goes_on_bit_for_bit(method: str):
    torch.manual_seed(5)
    whole = make_loop(method, accumulation=4, max_steps=7)
    expected = [whole.run_step()["loss"] for _ in range(7)]
    torch.manual_seed(5)
    first = make_loop(method, accumulation=4, max_steps=7)
    for _ in range(3):
        first.run_step()
    parts, facts = first.state()
    parts = {part: {key: tensor.clone() for key, tensor in tensors.items()} for part, tensors in parts.items()}
    torch.manual_seed(99)
    second = make_loop(method, accumulation=4, max_steps=7)
    second.load_state(parts, facts)
    assert [second.run_step()["loss"] for _ in range(4)] == expected[3:]
    for (key, one), (_, other) in zip(whole.adaptation.parameters(), second.adaptation.parameters(), strict=True):
        assert torch.equal(one, other), key
