"""Compiled blocks train as the model's own code does, and a compiler that fails is reported once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from draw import thorough
from small_runs import make_recipe

from peftkit import recipe
from peftkit.adaptation import attach
from peftkit.data.batches import Batches
from peftkit.data.encode import Encoded, insert
from peftkit.engine import compiled
from peftkit.engine.compiled import Compiled
from peftkit.engine.engine import Arrangement, choose
from peftkit.engine.memory_plan import MemoryPlan
from peftkit.engine.passes import Plain
from peftkit.engine.retrying import Retrying
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.recipe import TrainSection
from peftkit.together.base import check
from peftkit.training.loop import Loop
from peftkit.training.nesting import make_loop
from peftkit.training.observer import Silent
from peftkit.training.session import train

STEPS, EPOCH = 50, 5
TRACED = {"backend": "eager"}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler, which torch.compile needs"
)


class Notices(Silent):
    """Keeps the notices of a run."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        """Keep it."""
        self.notices.append(text)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    torch.compiler.reset()


def built(method: str, layers: int, **options: Any) -> Loop:
    """Build the loop of a tiny Llama, with micro-batches of another number of tokens in each step."""
    model = tiny("llama", num_hidden_layers=layers)
    adaptation = attach(model, [METHODS[method].from_options(options)], seed=1)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 96, (6 + 5 * number % 17,), generator=generator).tolist() for number in range(24)]
    given = [insert(Encoded(ids, ids), adaptation.soft_ids, 0) for ids in rows]
    section = TrainSection(batch_examples=5, max_steps=STEPS, learning_rate=1e-2, schedule="constant")
    batches = Batches(given, batch_examples=5, seed=0)
    engine, notices = choose(model, given, 0, torch.device("cpu"), Arrangement())
    assert not notices
    torch.manual_seed(3)
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=torch.device("cpu"))


def compile_blocks(loop: Loop) -> list[str]:
    """Compile the blocks of a loop; returns its notices, of now and later."""
    notices: list[str] = []
    plain = loop.passes.plain
    loop.passes = Compiled(plain, lambda: loop.batches.collate(loop.batches.plan(0)[0], 0), notices.append)
    loop.passes.open()
    return notices


def losses(loop: Loop, steps: int = STEPS) -> list[float]:
    """Take steps and return their losses."""
    return [loop.run_step()["loss"] for _ in range(steps)]


def fail(graph: Any, inputs: Any) -> Callable[..., Any]:
    """Compile nothing."""
    raise RuntimeError("no compiler of that kind\nand more lines")


@needs_compiler
@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="without vectors torch's inductor writes C++ for dropout that is refused; the run falls back and says so",
)
@pytest.mark.parametrize(("method", "options"), [("lora", {"targets": ("q",), "dropout": 0.1}), thorough("ia3", {})])
def test_losses_are_those_without_a_compiler(method: str, options: dict[str, Any]):
    expected = losses(built(method, 1, **options))
    loop = built(method, 1, **options)
    notices = compile_blocks(loop)
    assert len(notices) == 1
    assert notices[0].startswith("train.compile: 1 blocks compiled in ")
    result = losses(loop)
    assert result == pytest.approx(expected, abs=1e-4)
    assert sum(result[-EPOCH:]) < sum(result[:EPOCH])
    assert isinstance(loop.passes, Compiled)
    assert loop.passes.blocks, "the compiler was given up"


@needs_compiler
def test_a_run_that_goes_on_is_compiled_to_the_same_bits():
    loop = built("lora", 1, targets=("q",), dropout=0.1)
    compile_blocks(loop)
    losses(loop, 3)
    parts, facts = loop.state()
    parts = {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in parts.items()}
    evaluated, rest = loop.evaluate(loop.batches), losses(loop, 7)
    second = built("lora", 1, targets=("q",), dropout=0.1)
    notices = compile_blocks(second)
    second.load_state(parts, facts)
    assert second.evaluate(second.batches) == evaluated
    assert losses(second, 7) == rest
    assert len(notices) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS.names())
def test_each_method_is_traced_in_training(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    try:
        expected = losses(built(method, 2), 6)
    except PeftkitError as error:
        pytest.skip(f"it does not train with its defaults on this model: {error}")
    loop = built(method, 2)
    notices = compile_blocks(loop)
    assert losses(loop, 6) == pytest.approx(expected, abs=1e-4)
    assert len(notices) == 1, notices


def test_only_training_steps_are_compiled_and_nothing_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    loop = built("lora", 1, targets=("q",))
    keys = list(loop.adaptation.model.state_dict())
    before = loop.evaluate(loop.batches)
    compile_blocks(loop)
    assert list(loop.adaptation.model.state_dict()) == keys
    assert loop.evaluate(loop.batches) == before
    assert loop.step == 0
    assert all(parameter.grad is None for parameter in loop.parameters)
    loop.passes.close()
    assert not any("forward" in module.__dict__ for module in loop.adaptation.model.modules())


def test_a_compiler_that_fails_is_told_of_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    expected = losses(built("lora", 1, targets=("q",), dropout=0.2), 5)
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    loop = built("lora", 1, targets=("q",), dropout=0.2)
    notices = compile_blocks(loop)
    assert losses(loop, 5) == expected
    assert len(notices) == 1
    assert notices[0].startswith(
        "train.compile: the blocks cannot be compiled and run as they are: BackendCompilerFailed"
    )
    assert "no compiler of that kind" in notices[0]


def test_a_failure_in_a_later_step_repeats_it(monkeypatch: pytest.MonkeyPatch):
    expected = losses(built("lora", 1, targets=("q",), dropout=0.2), 5)
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    loop = built("lora", 1, targets=("q",), dropout=0.2)
    notices = compile_blocks(loop)
    result = losses(loop, 2)
    ran = compiled._InSteps.__call__

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran(self, *args, **kwargs)
        raise RuntimeError("found late")

    monkeypatch.setattr(compiled._InSteps, "__call__", broken)
    assert result + losses(loop, 3) == pytest.approx(expected, abs=1e-5)
    assert len(notices) == 2
    assert notices[1].endswith("run as they are: RuntimeError: found late")


def test_what_fails_without_a_compiler_too_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    loop = built("lora", 1, targets=("q",))

    def broken(*args: Any) -> Any:
        raise ValueError("another matter")

    monkeypatch.setattr(Plain, "loss", broken)
    with pytest.raises(ValueError, match="another matter"):
        compile_blocks(loop)


def test_a_run_goes_on_without_a_compiler(source, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    plain = recipe.load(make_recipe(source, "lora", max_steps=4))
    asked = recipe.load(make_recipe(source, "lora", max_steps=4, compile=True))
    observer = Notices()
    result = train(asked, tmp_path / "asked", observer=observer)
    assert result.losses == train(plain, tmp_path / "plain").losses
    assert sum("cannot be compiled" in text for text in observer.notices) == 1


@pytest.mark.parametrize("backend", [TRACED, thorough(compiled.COMPILER)], ids=["traced", "inductor"])
@pytest.mark.parametrize("recomputed", ["nothing", "mlps", "layers"])
def test_what_is_split_and_recomputed_is_compiled_too(backend, recomputed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", backend)
    expected = losses(built("lora", 1, targets=("q",)), 4)
    loop = built("lora", 1, targets=("q",))
    plan, notices = MemoryPlan(64, recomputed), []
    inner = Compiled(
        loop.passes, lambda: plan.pieces(loop.batches.collate(loop.batches.plan(0)[0], 0))[0], notices.append
    )
    loop.passes = Retrying(inner, [plan], lambda passes: passes.take(plan), notices.append)
    loop.passes.open()
    assert losses(loop, 4) == pytest.approx(expected, rel=1e-5)
    assert len(notices) == 1
    assert inner.blocks, "the compiler was given up"


@pytest.mark.parametrize("keys", [{"memory": "auto"}, {"gradient_checkpointing": True}])
def test_a_recipe_may_ask_for_both(source, tmp_path, keys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    plain = recipe.load(make_recipe(source, "lora", max_steps=4))
    asked = recipe.load(make_recipe(source, "lora", max_steps=4, compile=True, **keys))
    observer = Notices()
    result = train(asked, tmp_path / "asked", observer=observer)
    assert result.losses == pytest.approx(train(plain, tmp_path / "plain").losses, rel=1e-5)
    assert sum("blocks compiled in" in text for text in observer.notices) == 1
    assert not any("cannot be compiled" in text for text in observer.notices)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cuda_graphs": True}, "found cuda_graphs true; allowed: leave it out"),
        ({"compile": "auto"}, "train.compile: found .auto. .text.; allowed: true, false"),
    ],
)
def test_keys_of_earlier_versions_are_refused(source, keys, message):
    with pytest.raises(PeftkitError, match=message):
        recipe.load(make_recipe(source, "lora", **{"compile": True, **keys}))


def test_runs_together_are_not_compiled(source):
    asked = recipe.load(make_recipe(source, "lora", compile=True))
    with pytest.raises(PeftkitError, match=r"b cannot be trained together .* train\.compile is true"):
        check([("a", asked.model_copy(update={"train": TrainSection(device="cpu")})), ("b", asked)])
