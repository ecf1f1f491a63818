"""The operations of a step are those counted by hand, and the rate is measured without touching the run."""

from __future__ import annotations

import pytest
import torch

from peftkit import adapt
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.method import METHODS
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import tiny
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.training.rate import Meter, computes_in, counts, matrix_rate, work

WIDTH, INNER, GROUPS, VOCABULARY = 32, 64, 16, 96
LAYER = 2 * WIDTH * WIDTH + 2 * GROUPS * WIDTH + 3 * WIDTH * INNER
HEAD = WIDTH * VOCABULARY


def methods(chosen):
    return [METHODS[name].from_options(options) for name, options in chosen.items()]


def attached(chosen, **overrides):
    model = tiny("llama", **overrides)
    adapt.attach(model, methods(chosen))
    return model


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
    adapt.attach(model, methods({"lora": {"rank": 2}}))
    assert work(model) == work(attached({"lora": {"rank": 2}}))


def test_tokens_are_counted_as_they_are_computed():
    shared = list(range(10, 22))
    rows = [shared + [30, 31], shared + [40]]
    batch = collate([Encoded(ids, [-100] * 12 + ids[12:]) for ids in rows], pad_id=0)
    model = tiny("llama")
    tree = Engine(model, Arrangement(flat=True, share=True)).lay(batch)
    assert counts(tree) == (15, 3)
    assert counts(Engine(model, Arrangement(flat=True, share=False)).lay(batch)) == (27, 3)
    assert counts(Engine(model, Arrangement(flat=False)).lay(batch)) == (28, 3)
    assert counts(Engine(model, Arrangement(flat=False, apart=False)).lay(batch)) == (28, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_is_measured_and_leaves_the_random_state_alone(dtype):
    before = torch.get_rng_state()
    rate = matrix_rate((64, 128), dtype, torch.device("cpu"), seconds=0.002)
    assert rate > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_meter_sets_the_operations_of_all_micro_batches_against_the_rate():
    found = work(attached({"lora": {"rank": 2}}))
    meter = Meter(found, rate=1e6)
    assert meter.utilisation([(10, 3), (20, 5)], seconds=2.0) == pytest.approx(4 * (2 * LAYER * 30 + HEAD * 8) / 2e6)
    measured = Meter.of(attached({"lora": {"rank": 2}}), "fp32", torch.device("cpu"))
    assert measured.work == found
    assert measured.rate > 0


def test_a_large_matrix_is_cut_for_the_measurement():
    assert matrix_rate((8192, 2**40), torch.float32, torch.device("cpu"), seconds=0.0) > 0


def test_the_dtype_of_products():
    model = attached({"lora": {"rank": 2}})
    assert computes_in(model, "fp32") == torch.float32
    assert computes_in(model, "bf16") == torch.bfloat16
    assert computes_in(model.to(torch.bfloat16), "fp32") == torch.bfloat16
