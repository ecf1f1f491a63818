"""Every memory plan trains the same, and a run goes on to the next one instead of ending."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import decoder
from facts import facts
from small_runs import make_recipe
from test_loop import make_loop, rows
from test_session import Stops, Told, records
from torch._subclasses.fake_tensor import FakeTensor

from peftkit import recipe
from peftkit.data.batches import Batch, Batches
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.memory_plan import MemoryPlan, memory_plans, split
from peftkit.engine.packed_batch import PackedBatch
from peftkit.engine.passes import Plain
from peftkit.engine.retrying import Retrying
from peftkit.errors import PeftkitError
from peftkit.estimation import fit
from peftkit.free_memory import free_memory
from peftkit.method import METHODS
from peftkit.plan import plan
from peftkit.recipe.size import size_in_bytes
from peftkit.together import Job, train_together
from peftkit.training import Interrupted, session, train
from peftkit.training.loop import Loop

CPU = torch.device("cpu")
PLANS = [
    MemoryPlan(tokens=16),
    MemoryPlan(tokens=16, recomputed="mlps"),
    MemoryPlan(recomputed="layers"),
    MemoryPlan(tokens=8, recomputed="layers", offloaded=True),
]
QUICK = ("lora", "dora", "prefix-tuning", "prompt-tuning", "ia3", "serial-adapter", "bitfit", "full")
RANDOM = [name for name in METHODS.names() if facts(name).random_in_training]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("source")


def plenty(monkeypatch: pytest.MonkeyPatch, size: int = 10**12) -> None:
    """Let this much memory be free."""
    monkeypatch.setattr(fit, "free_memory", lambda device: size)


def starve(monkeypatch: pytest.MonkeyPatch, tokens: int, first: int = 0) -> None:
    """Let every loss of more than so many flat tokens run out of memory, but for the `first` that are asked for."""
    loss, asked = Plain.loss, 0

    def fail(self: Plain, packed: PackedBatch) -> Any:
        nonlocal asked
        if isinstance(next(self.engine.model.parameters()), FakeTensor):
            return loss(self, packed)
        asked += 1
        if asked > first and packed.inputs["input_ids"].numel() > tokens:
            torch.rand(3)
            raise torch.OutOfMemoryError("planted")
        return loss(self, packed)

    monkeypatch.setattr(Plain, "loss", fail)


def by(loop: Loop, *plans: MemoryPlan) -> Retrying:
    """Let a loop run by these plans, of which the first one is taken."""
    loop.passes = passes = Retrying(loop.passes.plain, plans)
    passes.take(plans[0])
    return passes


def stand(method: str, memory_plan: MemoryPlan, flat: bool) -> Loop:
    torch.manual_seed(3)
    model = decoder((method,))
    # A large epsilon: Adam makes whole steps of gradients that are nothing but rounding.
    loop = make_loop(method, model=model, batch_examples=6, max_steps=4, eps=1e-3)
    loop.passes.plain.engine = Engine(model, Arrangement(flat=flat))
    by(loop, memory_plan)
    return loop


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough)
        for name in METHODS.names()
        if name not in RANDOM
    ],
)
def test_every_plan_trains_the_same(method: str):
    flat = not METHODS[method].from_options({}).by_row
    result = []
    for memory_plan in (MemoryPlan(), *PLANS):
        loop = stand(method, memory_plan, flat)
        result.append(([loop.run_step() for _ in range(3)], loop.adaptation.state()))
    (first, weights), *others = result
    for steps, state in others:
        for one, other in zip(first, steps, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
            assert (other["tokens"], other["trained_tokens"]) == (one["tokens"], one["trained_tokens"])
        for key, tensor in weights.items():
            assert torch.allclose(state[key].float(), tensor.float(), atol=1e-5, rtol=1e-4), key


def test_plans_keep_less():
    loop = make_loop("lora", batch_examples=12, memory="auto")
    batch, passes = loop.batches.collate(list(range(12)), 0), loop.passes
    assert isinstance(passes, Retrying)
    plans = passes.plans
    # 12 rows of 8 tokens: the largest micro-batch is small already, so that recomputing comes before splitting.
    assert [one.tokens for one in plans] == [None, None, None, 48, 24, 12, 8]
    assert [one.recomputed for one in plans] == ["nothing", "mlps", *["layers"] * 5]
    needs = [passes.choose.needed(passes, one, batch) for one in plans]
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs[:5])) == 5


def test_splitting_comes_first_while_it_costs_nothing():
    batches = Batches([*rows(200), *rows(200), *rows(200)], batch_tokens=4096)
    plans = memory_plans(decoder(("lora",)), batches, CPU, checkpointing=True)
    assert [one.tokens for one in plans[:4]] == [None, 2048, 1024, 512]
    assert {one.recomputed for one in plans} == {"layers"}


def test_pieces_hold_each_row_once():
    batches = Batches(rows(12), batch_examples=12)
    batch = batches.collate(list(range(12)), 0)
    assert list(split(batch, batch.input_ids.numel())) == [batch]
    pieces = list(split(batch, 20))
    assert all(piece.input_ids.numel() <= 20 for piece in pieces)
    result = [
        (ids[:length].tolist(), labels[:length].tolist())
        for piece in pieces
        for ids, labels, length in zip(piece.input_ids, piece.labels, piece.attention_mask.sum(1), strict=True)
    ]
    assert sorted(result) == sorted((list(row.ids), list(row.labels)) for row in rows(12))
    assert sum(piece.trained for piece in pieces) == batch.trained
    assert sum(piece.tokens for piece in pieces) == batch.tokens
    assert len(list(split(batch, 1))) == 12


@pytest.mark.parametrize("method", ["lora", "prefix-tuning", "dylora", "ia3", "full"])
def test_plenty_of_memory_changes_no_bit(method: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    result = []
    for wanted in (None, "auto"):
        notices = Told()
        keys = make_recipe(source, method, max_steps=4, accumulation=2, memory=wanted)
        summary = train(recipe.load(keys), tmp_path / str(wanted), observer=notices)
        log = records(tmp_path / str(wanted))
        assert summary.memory_plan == (wanted and "as the recipe says")
        assert {record.pop("memory_plan", None) for record in log} == {summary.memory_plan}
        assert not [text for kind, text in notices.events if kind == "notice" and "memory" in text]
        result.append((log, (tmp_path / str(wanted) / "adapter" / "adapter.safetensors").read_bytes()))
    assert result[0] == result[1]


def test_a_step_that_runs_out_of_memory_is_repeated(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    keys = make_recipe(source, "lora", epochs=2, evaluate_every=4)
    keys["model"]["init"]["attention_dropout"] = 0.0
    expected = train(recipe.load(keys), tmp_path / "whole")
    keys["train"]["memory"] = "auto"
    message = Told()
    # The probe and four steps are left alone.
    starve(monkeypatch, 100, first=5)
    summary = train(recipe.load(keys), tmp_path / "run", observer=message)
    whole, log = records(tmp_path / "whole"), records(tmp_path / "run")
    assert [record["loss"] for record in log] == pytest.approx([record["loss"] for record in whole], abs=1e-5)
    assert log[-1]["validation_loss"] == pytest.approx(whole[-1]["validation_loss"], abs=1e-5)
    assert summary.losses["last"] == pytest.approx(expected.losses["last"], abs=1e-5)
    notices = [text for kind, text in message.events if kind == "notice" and "repeated" in text]
    assert "ran out of memory on a batch of" in notices[0]
    assert "the MLP of each layer computed again" in notices[0]
    assert notices[-1].endswith(f"{summary.memory_plan}.")
    assert "micro-batches of at most" in str(summary.memory_plan)
    assert log[0]["memory_plan"] == "as the recipe says"
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert log[-1]["memory_plan"] == summary.memory_plan == written["memory_plan"]


@pytest.mark.parametrize(("wanted", "message"), [("auto", "no memory plan is left"), (None, "train.memory=auto")])
def test_a_run_without_a_plan_left_ends(
    wanted: str | None, message: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plenty(monkeypatch)
    starve(monkeypatch, 1)
    with pytest.raises(PeftkitError, match=f"ran out of memory at step 1 on a batch of .*{message}"):
        train(recipe.load(make_recipe(source, "lora", max_steps=3, memory=wanted)), tmp_path / "run")


def test_an_error_of_another_kind_is_not_hidden(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("another fault")

    loop = stand("lora", MemoryPlan(), flat=True)
    by(loop, MemoryPlan(), *PLANS)
    monkeypatch.setattr(Plain, "loss", fail)
    with pytest.raises(RuntimeError, match="another fault"):
        loop.run_step()


def test_what_is_drawn_again_is_the_same(monkeypatch: pytest.MonkeyPatch):
    """A step that failed by the first plan draws the dropout of a run that went by the second all along."""
    result = []
    for fails in (False, True):
        loop = stand("lora", MemoryPlan(), flat=True)
        for part in loop.adaptation.parts:
            for adapter in part.adapters.values():
                adapter.dropout = 0.5
        passes = by(loop, *([MemoryPlan()] if fails else []), MemoryPlan(tokens=16))
        with monkeypatch.context() as patched:
            if fails:
                starve(patched, 16)
            torch.manual_seed(1)
            result.append([loop.run_step()["loss"] for _ in range(3)])
        assert passes.plan == MemoryPlan(tokens=16)
    assert result[0] == result[1]


def test_resumed_by_its_plan_bit_for_bit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    keys = recipe.load(make_recipe(source, {"lora": {"dropout": 0.1}}, epochs=1, accumulation=2, memory="auto"))
    with monkeypatch.context() as patched:
        starve(patched, 100, first=4)
        whole = train(keys, tmp_path / "whole")
    with monkeypatch.context() as patched:
        starve(patched, 100, first=4)
        with pytest.raises(Interrupted):
            train(keys, tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    # There is memory enough now, and the plan stays.
    monkeypatch.setattr(fit.Fit, "__call__", lambda *_: pytest.fail("a plan is chosen anew"))
    resumed = train(keys, tmp_path / "parts", resume=True)
    assert resumed.memory_plan == whole.memory_plan != "as the recipe says"
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_the_plan_is_chosen_by_what_is_free(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = make_recipe(source, "lora", max_steps=2, memory="auto")
    needs: dict[MemoryPlan, int] = {}
    find = fit.Fit.needed

    def once(self: fit.Fit, passes: Retrying, memory_plan: MemoryPlan, batch: Batch) -> int:
        if memory_plan not in needs:
            needs[memory_plan] = find(self, passes, memory_plan, batch)
        return needs[memory_plan]

    monkeypatch.setattr(fit.Fit, "needed", once)
    monkeypatch.setattr(fit, "peak_memory", lambda device: 0)
    seen = []
    for free in (10**12, 0):
        plenty(monkeypatch, free)
        seen.append(str(train(recipe.load(keys), tmp_path / f"run-{free}").memory_plan))
    plans = list(needs)
    assert seen == [str(plans[0]), str(plans[-1])]
    plenty(monkeypatch, int(needs[plans[3]] / fit.SPARE) + 2)
    notices = Told()
    summary = train(recipe.load(keys), tmp_path / "run", observer=notices)
    assert summary.memory_plan == str(next(one for one in plans if needs[one] <= needs[plans[3]]))
    assert any(kind == "notice" and str(summary.memory_plan) in text for kind, text in notices.events)


def test_a_measured_peak_corrects_the_estimate(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The estimate fits exactly; what is measured is higher by as much as the next plan saves, and some more."""
    keys = make_recipe(source, "lora", max_steps=2, memory="auto")
    needs: dict[MemoryPlan, int] = {}

    def needed(self: fit.Fit, passes: Retrying, memory_plan: MemoryPlan, batch: Batch) -> int:
        return needs.setdefault(memory_plan, 10000 - 1000 * len(needs))

    monkeypatch.setattr(fit.Fit, "needed", needed)
    monkeypatch.setattr(fit.Fit, "_states", lambda *_: 0)
    monkeypatch.setattr(fit, "resident_memory", lambda: 0)
    plenty(monkeypatch, 11112)
    peaks = iter((5000, 11500))
    monkeypatch.setattr(fit, "peak_memory", lambda device: next(peaks))
    notices = Told()
    summary = train(recipe.load(keys), tmp_path / "run", observer=notices)
    assert summary.memory_plan == str(list(needs)[2])
    assert any("were taken" in str(text) for kind, text in notices.events if kind == "notice")


def test_the_probe_leaves_the_run_alone(monkeypatch: pytest.MonkeyPatch):
    plenty(monkeypatch)
    loop = make_loop("dylora", memory="auto")
    model = loop.adaptation.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    loop.passes.open()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert isinstance(loop.passes, Retrying)
    assert (loop.step, loop.passes.plan) == (0, MemoryPlan())


def test_the_plan_of_a_recipe_shows_that_of_its_memory(source: Path):
    shown = [plan(recipe.load(make_recipe(source, "lora", memory=wanted))) for wanted in (None, "100GB", "1MB")]
    assert [planned.memory.memory_plan is None for planned in shown] == [True, False, False]
    assert shown[1].memory.memory_plan == "as the recipe says"
    assert shown[1].memory.allowed == 100 * 10**9
    assert "each layer computed again" in str(shown[2].memory.memory_plan)
    assert shown[2].memory.parts["activations"] < shown[1].memory.parts["activations"]
    assert any("by every memory plan" in notice for notice in shown[2].notices)


@pytest.mark.parametrize("value", ["6", "-1GB", "0GB", "6gb", "GB", "6 gigs", "0.1B", ""])
def test_other_sizes_are_refused(value: str, source: Path):
    with pytest.raises(PeftkitError, match=r"train\.memory: found .*allowed: auto, or a size such as 6GB"):
        recipe.load(make_recipe(source, memory=value))


@pytest.mark.parametrize("value", [6, 2.5, True, ["auto"], {"auto": 1}])
def test_other_kinds_of_values_are_refused(value: Any, source: Path):
    with pytest.raises(PeftkitError, match=r"train\.memory: found .*allowed: auto"):
        recipe.load(make_recipe(source, memory=value))


def test_a_wrong_spelling_is_corrected(source: Path):
    with pytest.raises(PeftkitError, match="did you mean 'auto'"):
        recipe.load(make_recipe(source, memory="atuo"))


def test_sizes():
    assert [size_in_bytes(text) for text in ("6GB", "1.5 MiB", "800MB")] == [6 * 10**9, 3 * 2**19, 8 * 10**8]


def test_runs_together_refuse_it(source: Path, tmp_path: Path):
    jobs = [
        Job(name, recipe.load(make_recipe(source, "lora", max_steps=1, memory=wanted)), tmp_path / name)
        for name, wanted in (("a", None), ("b", "auto"))
    ]
    with pytest.raises(PeftkitError, match=r"b cannot be trained together with others: train\.memory is 'auto'"):
        train_together(jobs)


def machine(root: Path, available: int, groups: dict[str, str], lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available} kB\n")
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in groups.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text)
    return root


def test_free_memory_is_what_the_tightest_group_leaves(tmp_path: Path):
    second = {
        "jobs/memory.max": "9000\n",
        "jobs/memory.current": "5000\n",
        "jobs/memory.stat": "anon 1\ninactive_file 700\n",
        "jobs/one/memory.max": "max\n",
        "jobs/one/memory.current": "100\n",
    }
    assert free_memory(CPU, machine(tmp_path / "two", 1000, second, "0::/jobs/one\n")) == 4700
    first = {"memory/a/memory.limit_in_bytes": "6000", "memory/a/memory.usage_in_bytes": "7000"}
    assert free_memory(CPU, machine(tmp_path / "one", 1000, first, "4:memory:/a\n3:cpu:/\n")) == 0
    assert free_memory(CPU, machine(tmp_path / "none", 3, {}, "0::/\n")) == 3072
    assert free_memory(CPU) > 0
    with pytest.raises(PeftkitError, match="does not tell how much memory is free"):
        free_memory(CPU, tmp_path / "nowhere")
