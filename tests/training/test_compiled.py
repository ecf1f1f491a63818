"""Compiled blocks train as the model's own code does, and a compiler that fails is told of once."""

from __future__ import annotations

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
from peftkit.engine.engine import Arrangement, choose
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.recipe import TrainSection
from peftkit.together.base import check
from peftkit.training import compiled
from peftkit.training.compiled import CompiledBlocks
from peftkit.training.loop import Loop
from peftkit.training.observer import Silent
from peftkit.training.session import train

STEPS, EPOCH = 50, 5
TRACED = {"backend": "eager"}
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler, which torch.compile needs"
)


class Told(Silent):
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


def built(method: str, layers: int, compile: bool | str = False, **options: Any) -> Loop:
    """Build the loop of a tiny Llama, with micro-batches of another number of tokens in each step."""
    model = tiny("llama", num_hidden_layers=layers)
    adaptation = attach(model, [METHODS[method].from_options(options)], seed=1)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 96, (6 + 5 * number % 17,), generator=generator).tolist() for number in range(24)]
    given = [insert(Encoded(ids, ids), adaptation.soft_ids, 0) for ids in rows]
    section = TrainSection(batch_examples=5, max_steps=STEPS, learning_rate=1e-2, schedule="constant", compile=compile)
    batches = Batches(given, batch_examples=5, seed=0)
    engine, told = choose(model, given, 0, torch.device("cpu"), Arrangement())
    assert not told
    torch.manual_seed(3)
    return Loop(model, adaptation, batches, section, pad_id=0, device=torch.device("cpu"), engine=engine)


def compile_blocks(loop: Loop) -> list[str]:
    """Compile the blocks of a loop; returns what is told, now and later."""
    told: list[str] = []
    loop.compiled = CompiledBlocks(loop.model, told.append)
    loop.compiled.begin(loop)
    return told


def losses(loop: Loop, steps: int = STEPS) -> list[float]:
    """Take steps and return their losses."""
    return [loop.run_step()["loss"] for _ in range(steps)]


def fail(graph: Any, inputs: Any) -> Callable[..., Any]:
    """Compile nothing."""
    raise RuntimeError("no compiler of that kind\nand more lines")


@needs_compiler
@pytest.mark.parametrize(("method", "options"), [("lora", {"targets": ("q",), "dropout": 0.1}), thorough("ia3", {})])
def test_losses_are_those_without_a_compiler(method: str, options: dict[str, Any]):
    expected = losses(built(method, 1, **options))
    loop = built(method, 1, **options)
    told = compile_blocks(loop)
    assert len(told) == 1
    assert told[0].startswith("train.compile: 1 blocks compiled in ")
    found = losses(loop)
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found[-EPOCH:]) < sum(found[:EPOCH])
    assert loop.compiled is not None
    assert loop.compiled.blocks, "the compiler was given up"


@needs_compiler
def test_a_run_that_goes_on_is_compiled_to_the_same_bits():
    loop = built("lora", 1, targets=("q",), dropout=0.1)
    compile_blocks(loop)
    losses(loop, 3)
    parts, facts = loop.state()
    parts = {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in parts.items()}
    evaluated, rest = loop.evaluate(loop.batches), losses(loop, 7)
    again = built("lora", 1, targets=("q",), dropout=0.1)
    told = compile_blocks(again)
    again.load_state(parts, facts)
    assert again.evaluate(again.batches) == evaluated
    assert losses(again, 7) == rest
    assert len(told) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS.names())
def test_each_method_is_traced_in_training(method: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    try:
        expected = losses(built(method, 2), 6)
    except PeftkitError as error:
        pytest.skip(f"it does not train with its defaults on this model: {error}")
    loop = built(method, 2)
    told = compile_blocks(loop)
    assert losses(loop, 6) == pytest.approx(expected, abs=1e-4)
    assert len(told) == 1, told


def test_only_training_steps_are_compiled_and_nothing_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    loop = built("lora", 1, targets=("q",))
    keys = list(loop.model.state_dict())
    before = loop.evaluate(loop.batches)
    compile_blocks(loop)
    assert loop.compiled is not None
    assert list(loop.model.state_dict()) == keys
    assert loop.evaluate(loop.batches) == before
    assert loop.step == 0
    assert all(parameter.grad is None for parameter in loop.parameters)
    loop.compiled.stop()
    assert not any("forward" in module.__dict__ for module in loop.model.modules())


def test_a_compiler_that_fails_is_told_of_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    expected = losses(built("lora", 1, targets=("q",), dropout=0.2), 5)
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    loop = built("lora", 1, targets=("q",), dropout=0.2)
    told = compile_blocks(loop)
    assert losses(loop, 5) == expected
    assert len(told) == 1
    assert told[0].startswith("train.compile: the blocks cannot be compiled and run as they are: BackendCompilerFailed")
    assert "no compiler of that kind" in told[0]


def test_a_failure_in_a_later_step_repeats_it(monkeypatch: pytest.MonkeyPatch):
    expected = losses(built("lora", 1, targets=("q",), dropout=0.2), 5)
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    loop = built("lora", 1, targets=("q",), dropout=0.2)
    told = compile_blocks(loop)
    found = losses(loop, 2)
    ran = compiled._InSteps.__call__

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran(self, *args, **kwargs)
        raise RuntimeError("found late")

    monkeypatch.setattr(compiled._InSteps, "__call__", broken)
    assert found + losses(loop, 3) == pytest.approx(expected, abs=1e-5)
    assert len(told) == 2
    assert told[1].endswith("run as they are: RuntimeError: found late")


def test_what_fails_without_a_compiler_too_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    loop = built("lora", 1, targets=("q",))
    told: list[str] = []
    loop.compiled = CompiledBlocks(loop.model, told.append)

    def broken(*args: Any) -> Any:
        raise ValueError("another matter")

    monkeypatch.setattr(loop.engine, "loss", broken)
    with pytest.raises(ValueError, match="another matter"):
        loop.compiled.begin(loop)
    assert told == []


def test_a_run_goes_on_without_a_compiler(source, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "COMPILER", {"backend": fail})
    plain = recipe.load(make_recipe(source, "lora", max_steps=4))
    asked = recipe.load(make_recipe(source, "lora", max_steps=4, compile=True))
    observer = Told()
    found = train(asked, tmp_path / "asked", observer=observer)
    assert found.losses == train(plain, tmp_path / "plain").losses
    assert sum("cannot be compiled" in text for text in observer.notices) == 1


@pytest.mark.parametrize(
    ("times", "steps", "told"),
    [
        ([1.0], 1199, ["the run takes about 1199 s as it is, and nothing is compiled."]),
        (
            [1.0, 0.9],
            1200,
            ["1 blocks compiled in", "a pass takes 0.9 s compiled and 1 s as it is: blocks stay compiled."],
        ),
        (
            [1.0, 0.97],
            1200,
            ["1 blocks compiled in", "a pass takes 0.97 s compiled and 1 s as it is: nothing is compiled."],
        ),
    ],
)
def test_auto_compiles_long_runs_and_keeps_it_where_it_is_quicker(
    times: list[float], steps: int, told: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    given, heard = iter(times), []
    monkeypatch.setattr(CompiledBlocks, "_seconds", lambda self, loop: next(given))
    loop = built("lora", 1, compile="auto", targets=("q",))
    loop.steps, loop.compiled = steps, CompiledBlocks(loop.model, heard.append)
    loop.compiled.settle(loop)
    assert len(heard) == len(told)
    assert all(part in text for part, text in zip(told, heard, strict=True))
    kept = heard[-1].endswith("stay compiled.")
    assert bool(loop.compiled.blocks) == loop.engine.compiled == kept
    assert any("forward" in module.__dict__ for module in loop.model.modules()) == kept
    assert loop.state()[1]["compiled"] == kept


@pytest.mark.parametrize("decided", [True, False])
def test_a_resumed_run_is_compiled_as_it_was(decided: bool, monkeypatch: pytest.MonkeyPatch):
    """What the first part of a run has measured counts: another measurement could go the other way."""
    monkeypatch.setattr(compiled, "COMPILER", TRACED)
    monkeypatch.delattr(CompiledBlocks, "_seconds")
    first = built("lora", 1, compile="auto", targets=("q",))
    first.compiled = CompiledBlocks(first.model)
    first.compiled.settle(first, decided)
    losses(first, 2)
    parts, facts = first.state()
    parts = {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in parts.items()}
    rest = losses(first, 3)
    again = built("lora", 1, compile="auto", targets=("q",))
    again.load_state(parts, facts)
    assert again.settled is decided
    again.compiled = CompiledBlocks(again.model)
    again.compiled.settle(again, again.settled)
    assert bool(again.compiled.blocks) == decided
    assert losses(again, 3) == rest


def test_passes_are_timed_without_a_trace():
    expected = losses(built("lora", 1, targets=("q",), dropout=0.2), 4)
    loop = built("lora", 1, targets=("q",), dropout=0.2)
    assert CompiledBlocks(loop.model)._seconds(loop) > 0
    assert losses(loop, 4) == expected


def test_a_run_too_short_for_auto_is_told_of(source, tmp_path):
    observer = Told()
    asked = recipe.load(make_recipe(source, "lora", max_steps=2, compile="auto"))
    train(asked, tmp_path / "asked", observer=observer)
    assert sum("and nothing is compiled" in text for text in observer.notices) == 1


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"memory": "auto", "compile": "auto"}, "found compile auto and memory 'auto'; allowed: one of them"),
        ({"memory": "auto"}, "found compile true and memory 'auto'; allowed: one of them"),
        ({"gradient_checkpointing": True}, "found compile true and gradient_checkpointing true; allowed: one of them"),
        ({"cuda_graphs": True}, "found compile true and cuda_graphs true; allowed: one of them"),
        ({"compile": "fast"}, "train.compile: found .fast. .text.; allowed: false, true, auto"),
    ],
)
def test_a_recipe_that_asks_for_both_is_refused(source, keys, told):
    with pytest.raises(PeftkitError, match=told):
        recipe.load(make_recipe(source, "lora", **{"compile": True, **keys}))


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
def test_runs_together_are_neither_compiled_nor_recorded(source, key):
    asked = recipe.load(make_recipe(source, "lora", **{key: True}))
    with pytest.raises(PeftkitError, match=rf"b cannot be trained together .* train\.{key} is true"):
        check([("a", asked.model_copy(update={"train": TrainSection(device="cpu")})), ("b", asked)])
