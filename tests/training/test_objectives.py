"""An objective in a file of its own: values by row, a trained module, a batch and metrics of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from losses import WHOLE, plain_loss
from small_runs import make_recipe
from torch import nn

from peftkit import recipe
from peftkit.adaptation import attach
from peftkit.data.batches import Batch, Batches, collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.engine.memory_plan import MemoryPlan, split
from peftkit.engine.retrying import Retrying
from peftkit.errors import PeftkitError
from peftkit.estimation.asked import objective_of
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.objectives import OBJECTIVES, Loss, Objective, Outputs, Predictions
from peftkit.objectives.cross_entropy import CrossEntropyOf
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop

CPU = torch.device("cpu")
ARRANGEMENTS = [Arrangement(), Arrangement(share=False), Arrangement(flat=False), WHOLE]


def rows() -> list[Encoded]:
    """Rows that begin alike and have parts of their targets in common."""
    start = list(range(20, 32))
    texts = [[*start, 40, 41, 42], [*start, 40, 41, 50], [*start, 40], [7, 8, 9]]
    return [Encoded(ids, [-100] * 2 + ids[2:]) for ids in texts]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
def test_values_are_those_of_each_row_by_itself(arrangement: Arrangement):
    """What several rows predict is computed once, and each of them has its value and its gradient."""
    model = tiny("llama").eval()
    engine, function = Engine(model, arrangement), CrossEntropyOf(0.1)
    packed = engine.pack(collate(rows(), 0))
    factors = torch.tensor([1.0, -2.0, 3.0, 0.5])
    with engine.running(packed):
        outputs = engine.forward(packed)
        values = outputs.values(function)
        sums = torch.zeros(4).index_add(0, packed.rows, values)
        total = outputs.sum(function)
        (sums.tanh() * factors).sum().backward()
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = torch.stack([plain_loss(model, collate([row], 0), 0.1) for row in rows()])
    torch.testing.assert_close(sums, alone, atol=1e-4, rtol=1e-5)
    assert total.item() == pytest.approx(alone.sum().item(), rel=1e-5)
    (alone.tanh() * factors).sum().backward()
    for name, gradient in result.items():
        wanted = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS[:3], ids=str)
def test_the_last_hidden_state_of_each_row_is_its_own(arrangement: Arrangement):
    model: Any = tiny("llama").eval()
    engine = Engine(model, arrangement)
    packed = engine.pack(collate(rows(), 0))
    with engine.running(packed), torch.no_grad():
        last = engine.forward(packed).last()
    with torch.no_grad():
        alone = [model.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0, -1] for row in rows()]
    torch.testing.assert_close(last, torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_model_that_stays_whole_has_no_hidden_states_for_an_objective():
    engine = Engine(tiny("llama"), WHOLE)
    with pytest.raises(PeftkitError, match="reads hidden states"):
        engine.forward(engine.pack(collate(rows(), 0))).last()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> type[Objective]:
    """Register an objective that tells even texts from odd ones by their last hidden state."""
    monkeypatch.setattr(OBJECTIVES, "_entries", {**OBJECTIVES._entries})

    @dataclass(frozen=True, kw_only=True)
    class Parity(Objective, name="parity"):
        weight: float = 1.0

        def build(self, layout: Layout) -> nn.Module:
            torch.manual_seed(0)
            return nn.Linear(layout.width, 2)

        def collate(self, rows: Sequence[Encoded], pad_id: int) -> Batch:
            labels = torch.tensor([len(row.ids) % 2 for row in rows])
            batch = collate(rows, pad_id)
            return replace(batch, trained=len(rows), terms=[1] * len(rows), extras={"label": labels})

        def loss(self, outputs: Outputs, batch: Predictions) -> Loss:
            assert outputs.module is not None
            logits, label = outputs.module(outputs.last()), batch.extras["label"]
            correct = (logits.detach().argmax(1) == label).float()
            return Loss(
                self.weight * F.cross_entropy(logits, label, reduction="sum"), batch.trained, {"accuracy": correct}
            )

    return Parity


def looped(objective: Objective, **train: Any) -> Any:
    model = tiny("llama")
    adaptation = attach(model, [METHODS["lora"].from_options({"rank": 2})], seed=1)
    module = objective.build(adaptation.layout)
    assert module is not None
    adaptation.modules["objective"] = module
    section = TrainSection(batch_examples=4, max_steps=30, learning_rate=1e-2, schedule="constant", **train)
    given = [Encoded(list(range(5, 8 + number)), list(range(5, 8 + number))) for number in range(8)]
    batches = Batches(given, batch_examples=4, collate=objective.collate)
    return make_loop(
        Engine(model, Arrangement()), adaptation, batches, section, pad_id=0, device=CPU, objective=objective
    )


def test_an_objective_with_a_module_trains_tells_its_metrics_and_goes_on(toy: type[Objective]):
    loop = looped(toy())
    records = [loop.run_step() for _ in range(30)]
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert records[0]["trained_tokens"] == 4
    assert 0 <= records[0]["accuracy"] <= 1
    assert loop.evaluate(loop.batches).scores == {"accuracy": 1.0}
    parts, facts = loop.state()
    assert {"objective/weight", "objective/bias"} <= parts["adapter"].keys()
    parts = {part: {key: tensor.clone() for key, tensor in tensors.items()} for part, tensors in parts.items()}
    other = looped(toy())
    other.load_state(parts, facts)
    assert loop.run_step()["loss"] == other.run_step()["loss"]


def test_rows_keep_what_stands_beside_them_when_a_batch_is_split(toy: type[Objective]):
    first, second = looped(toy()), looped(toy())
    second.passes = Retrying(second.passes.plain, [MemoryPlan(tokens=12)])
    batch = first.batches.collate([0, 3, 5, 6], 0)
    pieces = list(split(batch, 12))
    assert len(pieces) > 1
    assert sum(piece.trained for piece in pieces) == batch.trained == 4
    for piece in pieces:
        assert [int(mask.sum()) % 2 for mask in piece.attention_mask] == piece.extras["label"].tolist()
    for _ in range(3):
        assert first.run_step()["loss"] == pytest.approx(second.run_step()["loss"], rel=1e-5)


def test_a_recipe_names_the_objective_and_its_options(tmp_path):
    given = make_recipe(tmp_path, "lora", max_steps=1)
    loaded = recipe.load({**given, "objective": {"cross-entropy": {"label_smoothing": 0.1}}})
    assert (loaded.objective, loaded.train.label_smoothing) == ("cross-entropy", 0.1)
    assert objective_of(loaded.train, loaded.objective).options() == {"label_smoothing": 0.1}
    (tmp_path / "resolved.yaml").write_text(loaded.to_yaml())
    assert recipe.load(tmp_path / "resolved.yaml") == loaded
    assert recipe.load(given).objective == "cross-entropy"


@pytest.mark.parametrize(
    ("objective", "smoothing", "message"),
    [
        ({"cross-entropy": {"label_smoothing": 0.1}}, 0.2, "label_smoothing: found 0.1 .*train.label_smoothing is 0.2"),
        ("cross-entropi", 0.0, "objective: found 'cross-entropi', which is no objective; .*mean 'cross-entropy'"),
        ({"cross-entropy": {"smoothing": 0.1}}, 0.0, "objective.cross-entropy.smoothing: unknown key"),
        ({"cross-entropy": {"label_smoothing": 2}}, 0.0, "objective.cross-entropy.*label_smoothing"),
        ({"cross-entropy": {}, "other": {}}, 0.0, "objective: found a mapping; allowed: a name, or"),
        (3, 0.0, "objective: found 3 .*; allowed: a name, or"),
    ],
)
def test_a_wrong_objective_is_told_where_it_stands(tmp_path, objective: Any, smoothing: float, message: str):
    given = {**make_recipe(tmp_path, "lora", max_steps=1, label_smoothing=smoothing), "objective": objective}
    with pytest.raises(PeftkitError, match=message):
        recipe.load(given)


def test_smoothing_is_refused_where_the_objective_has_none(tmp_path, toy: type[Objective]):
    given = {**make_recipe(tmp_path, "lora", max_steps=1, label_smoothing=0.1), "objective": "parity"}
    with pytest.raises(PeftkitError, match=r"train.label_smoothing: found 0.1 .*the objective 'parity' has none"):
        recipe.load(given)
