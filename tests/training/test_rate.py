"""The operations of a step are those counted by hand, and the rate is measured without touching the run."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.adaptation import attached as attachments
from peftkit.data.batches import Batches, collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.method import METHODS
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import TrainSection
from peftkit.training.counts import Counts, counts, largest_batch, saved_parts, total
from peftkit.training.loop import Loop
from peftkit.training.parts import memory_parts
from peftkit.training.rate import Meter, computes_in, matrix_rate, work

WIDTH, INNER, GROUPS, VOCABULARY = 32, 64, 16, 96
LAYER = 2 * WIDTH * WIDTH + 2 * GROUPS * WIDTH + 3 * WIDTH * INNER
HEAD = WIDTH * VOCABULARY


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
    return Loop(model, adaptation, batches, section, pad_id=0, device=torch.device("cpu"), engine=engine)


def test_a_frozen_base_takes_four_operations_a_weight_and_token():
    found = work(attached({"lora": {"rank": 2}}))
    assert (found.body, found.passed, found.trained) == (2 * LAYER, 2 * LAYER, 0)
    assert (found.head, found.head_passed, found.head_trained) == (HEAD, HEAD, 0)
    assert found.flops(computed=10, predicted=3) == 4 * (2 * LAYER * 10 + HEAD * 3)
    assert found.matrix == (WIDTH, INNER)


def test_trained_weights_take_six():
    found = work(attached({"full": {}}, tie_word_embeddings=False))
    assert found.flops(computed=10, predicted=3) == 6 * (2 * LAYER * 10 + HEAD * 3)


def test_below_the_lowest_trained_block_there_is_no_backward_pass():
    found = work(attached({"lora": {"rank": 2, "layers": [1]}}))
    assert found.flops(computed=10, predicted=3) == 2 * (2 * LAYER + LAYER) * 10 + 4 * HEAD * 3


def test_a_soft_prompt_lies_below_all_blocks():
    found = work(attached({"prompt-tuning": {"length": 3}}))
    assert found.flops(computed=10, predicted=3) == 4 * (2 * LAYER * 10 + HEAD * 3)


def test_a_trained_head_alone_needs_no_gradient_of_anything_below():
    model = tiny("llama", tie_word_embeddings=False).requires_grad_(False)
    model.lm_head.weight.requires_grad_()
    assert work(model).flops(computed=10, predicted=3) == 2 * 2 * LAYER * 10 + 4 * HEAD * 3


def test_packed_weights_count_as_dense_ones():
    model = tiny("llama")
    quantize(model, Quantization(QUANTIZERS["nf4"](), {}))
    attach(model, methods({"lora": {"rank": 2}}))
    assert work(model) == work(attached({"lora": {"rank": 2}}))


def test_tokens_are_counted_as_they_are_computed():
    shared = list(range(10, 22))
    rows = [shared + [30, 31], shared + [40]]
    batch = collate([Encoded(ids, [-100] * 12 + ids[12:]) for ids in rows], pad_id=0)
    model = tiny("llama")
    found = {}
    for name, arrangement in (
        ("shared", Arrangement(flat=True, share=True)),
        ("packed", Arrangement(flat=True, share=False)),
        ("padded", Arrangement(flat=False)),
        ("whole", Arrangement(flat=False, apart=False)),
    ):
        found[name] = counts(batch, Engine(model, arrangement).lay(batch))
    assert found["shared"] == (15, 3, 1, 12)
    assert found["packed"] == (27, 3, 1, 0)
    assert found["padded"] == (28, 3, 0, 0)
    assert found["whole"] == (28, 4, 0, 0)
    assert total(found.values()) == (98, 13, 2, 12)


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
    loop = looped(attached({"lora": {"rank": 2}}))
    loop.batches = batches = Batches(rows, batch_tokens=60, seed=1, group_prompts=grouped)
    loop.section = TrainSection(batch_tokens=60, accumulation=2, epochs=1)
    loop.engine = Engine(loop.model, arrangement)
    for steps in (5, 2):
        loop.steps, sizes = steps, []
        for indices in batches.plan(0)[: 2 * steps]:
            batch = batches.collate(indices, 0)
            sizes.append(counts(batch, loop.engine.lay(batch)).computed)
        found = largest_batch(loop)
        assert found["tokens"] == max(sizes)
        assert max(sizes[2 * found["step"] - 2 : 2 * found["step"]]) == max(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_is_measured_and_leaves_the_random_state_alone(dtype):
    before = torch.get_rng_state()
    rate = matrix_rate((64, 128), dtype, torch.device("cpu"), seconds=0.002)
    assert rate > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_meter_sets_the_operations_of_all_micro_batches_against_the_rate():
    found = work(attached({"lora": {"rank": 2}}))
    meter = Meter(found, rate=1e6)
    counted = total([Counts(10, 3), Counts(20, 5)])
    assert meter.utilisation(counted, seconds=2.0) == pytest.approx(4 * (2 * LAYER * 30 + HEAD * 8) / 2e6)
    measured = Meter.of(looped(attached({"lora": {"rank": 2}})))
    assert measured is not None
    assert measured.work == found
    assert measured.rate > 0


def test_only_what_the_loop_trains_counts_beside_other_adaptations():
    model = tiny("llama")
    low = attach(model, methods({"lora": {"rank": 2}}), "low")
    high = attach(model, methods({"lora": {"rank": 2, "layers": [1]}}), "high")
    trained = {found.name: [parameter for _, parameter in found.parameters()] for found in (low, high)}
    assert work(model, trained["low"]).passed == 2 * LAYER
    assert work(model, trained["high"]).passed == LAYER


def test_a_step_tells_what_it_computed_and_a_meter_makes_it_tell_the_utilisation():
    loop = looped(attached({"lora": {"rank": 2}}))
    record = loop.run_step()
    assert "utilisation" not in record
    assert record["computed_tokens"] + record["shared_tokens_saved"] == record["tokens"] == 4 * 10 + 1 + 2 + 3 + 4
    assert (record["shared_tokens_saved"], record["padding_tokens_saved"]) == (30, 6)
    loop.meter = Meter(work(loop.model, loop.parameters), rate=1e9)
    record = loop.run_step()
    seconds = record["tokens"] / record["tokens_per_s"]
    assert record["trained_tokens_per_s"] == pytest.approx(record["trained_tokens"] / seconds, rel=0.01)
    # All tokens are trained on; the first 9 of the 10 shared ones predict the same four times.
    predicted = 9 + sum(range(1, 5))
    flops = loop.meter.work.flops(record["computed_tokens"], predicted)
    assert record["utilisation"] == pytest.approx(flops / seconds / 1e9, rel=0.02)


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


def test_a_large_matrix_is_cut_for_the_measurement():
    assert matrix_rate((8192, 2**40), torch.float32, torch.device("cpu"), seconds=0.0) > 0


def test_the_dtype_of_products():
    model = attached({"lora": {"rank": 2}})
    assert computes_in(model, "fp32") == torch.float32
    assert computes_in(model, "bf16") == torch.bfloat16
    assert computes_in(model.to(torch.bfloat16), "fp32") == torch.bfloat16
