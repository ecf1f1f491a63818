"""Tokens, and the parts of the memory, are those counted by hand."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.adaptation import attached as attachments
from peftkit.data.batches import Batches, collate
from peftkit.data.encode import Encoded
from peftkit.engine.counts import counts, largest_batch, saved_parts, total
from peftkit.engine.engine import Arrangement, Engine
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop
from peftkit.training.parts import memory_parts


def methods(chosen):
    return [METHODS[name].from_options(options) for name, options in chosen.items()]


def attached(chosen, **overrides):
    model = tiny("llama", **overrides)
    attach(model, methods(chosen))
    return model


def looped(model):
    """A loop over four rows that begin alike, in one batch."""
    rows = [list(range(10, 20)) + [30 + number] * (1 + number) for number in range(4)]
    batches = Batches([Encoded(ids, ids) for ids in rows], batch_examples=4)
    section = TrainSection(batch_examples=4, max_steps=3, learning_rate=1e-3)
    adaptation = attachments(model).adaptations["default"]
    engine = Engine(model, Arrangement())
    return make_loop(engine, adaptation, batches, section, pad_id=0, device=torch.device("cpu"))


def test_tokens_are_counted_as_they_are_computed():
    shared = list(range(10, 22))
    rows = [shared + [30, 31], shared + [40]]
    batch = collate([Encoded(ids, [-100] * 12 + ids[12:]) for ids in rows], pad_id=0)
    model = tiny("llama")
    result = {}
    for name, arrangement in (
        ("shared", Arrangement(flat=True, share=True)),
        ("packed", Arrangement(flat=True, share=False)),
        ("padded", Arrangement(flat=False)),
        ("whole", Arrangement(flat=False, apart=False)),
    ):
        result[name] = counts(batch, Engine(model, arrangement).pack(batch))
    assert result["shared"] == (15, 1, 12)
    assert result["packed"] == (27, 1, 0)
    assert result["padded"] == (28, 0, 0)
    assert result["whole"] == (28, 0, 0)
    assert total(result.values()) == (98, 2, 12)


def test_what_is_saved_is_told_of_the_first_batches():
    rows = [list(range(10, 20)) + [30 + number] * (1 + number) for number in range(4)]
    batches = Batches([Encoded(ids, ids) for ids in rows], batch_examples=4)
    model = tiny("llama")
    # 4 rows of 11 to 14 tokens, whose first 10 are the same.
    assert saved_parts(batches, Engine(model, Arrangement()), 0) == {
        "padding": round(6 / 56, 4),
        "shared": round(30 / 50, 4),
    }
    assert saved_parts(batches, Engine(model, Arrangement(flat=False)), 0) == {"padding": 0.0, "shared": 0.0}


@pytest.mark.parametrize("arrangement", [Arrangement(), Arrangement(share=False), Arrangement(flat=False)], ids=str)
@pytest.mark.parametrize("grouped", [False, True])
def test_the_largest_micro_batch_and_its_step_are_told(arrangement, grouped):
    prompts = [[10 + number] * (8 + number) for number in range(6)]
    rows = [Encoded(p + [40] * (turn + 1), [-100] * len(p) + [40] * (turn + 1)) for turn in range(4) for p in prompts]
    batches = Batches(rows, batch_tokens=60, seed=1, group_prompts=grouped)
    engine = Engine(attached({"lora": {"rank": 2}}), arrangement)
    for steps in (5, 2):
        sizes = []
        for indices in batches.plan(0)[: 2 * steps]:
            batch = batches.collate(indices, 0)
            sizes.append(counts(batch, engine.pack(batch)).computed)
        result = largest_batch(batches, engine, 0, accumulation=2, steps=steps)
        assert result["tokens"] == max(sizes)
        assert max(sizes[2 * result["step"] - 2 : 2 * result["step"]]) == max(sizes)


def test_a_step_tells_what_it_computed():
    loop = looped(attached({"lora": {"rank": 2}}))
    record = loop.run_step()
    assert record["computed_tokens"] + record["shared_tokens_saved"] == record["tokens"] == 4 * 10 + 1 + 2 + 3 + 4
    assert (record["shared_tokens_saved"], record["padding_tokens_saved"]) == (30, 6)
    seconds = record["tokens"] / record["tokens_per_s"]
    assert record["trained_tokens_per_s"] == pytest.approx(record["trained_tokens"] / seconds, rel=0.01)


def test_parts_of_the_memory_are_those_counted_by_hand():
    model = tiny("llama")
    own = sum(parameter.nbytes for parameter in model.parameters()) + sum(b.nbytes for b in model.buffers())
    adaptation = attach(model, methods({"lora": {"rank": 2}}))
    loop = looped(model)
    loop.run_step()
    parts = memory_parts(loop, peak=10**9)
    assert sum(parts.values()) == 10**9
    assert parts["weights"] == own
    assert parts["adapter"] == parts["gradients"] == 4 * adaptation.trainable
    # Two moments of each weight, and a number of steps in fp32 for each tensor.
    assert parts["optimizer"] == 2 * parts["adapter"] + 4 * len(loop.parameters)
    assert memory_parts(loop, peak=0)["rest"] == 0


def test_weights_that_are_trained_are_the_models_and_have_gradients():
    model = tiny("llama")
    adaptation = attach(model, methods({"layernorm-tuning": {}}))
    parts = memory_parts(looped(model), peak=10**9)
    assert (parts["adapter"], parts["gradients"], parts["optimizer"]) == (0, 4 * adaptation.trainable, 0)
    assert parts["weights"] > parts["gradients"]
