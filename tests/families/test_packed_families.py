"""Packed rows, padded rows and plain transformers give one loss and one gradient on every family of decoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from draw import marked
from losses import loss_of, plain_loss
from transformers.models.lfm2_moe import modeling_lfm2_moe

import zoo
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.counts import counts
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.engine.rows import check_order, moved_by_padding
from peftkit.errors import PeftkitError

CPU = torch.device("cpu")
HELD = ["deepseek_v3", "lfm2_moe", "mamba2", "qwen3_next", "recurrent_gemma", "rwkv"]
"""Latent attention, a convolution, a state space, linear attention, a recurrence, and one without masks."""
FAMILIES = [name for name in zoo.families() if name not in zoo.UNMADE]
RANKING = {
    **{"doge": "keep_window_size", "axk2": "index_topk", "deepseek_v32": "index_topk", "dots3_note_text": "index_topk"},
    **{"glm_moe_dsa": "index_topk", "hy_v4": "index_topk", "qwen4_exp_text": "indexer_budget"},
}
"""Families that attend to the best of all keys, and the key of how many those are."""
MOVED = "computes something else for a row that is padded on the right"
PADDED = Arrangement(flat=False)
SEEN_AHEAD = {"cpmant", "xlnet"}
"""Families whose tokens see those behind them."""


def rows() -> list[Encoded]:
    """Five rows of unequal length, longer than the windows of the zoo, four of which begin alike."""
    generator = torch.Generator().manual_seed(7)
    a, b, c = (torch.randint(3, 96, (count,), generator=generator).tolist() for count in (12, 25, 33))
    texts = [a + b, a + b[:4] + c[:3], a, c, a + c[:21]]
    return [Encoded(ids, [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]) for ids in texts]


def measured(model: Any, *losses: Any) -> tuple[float, float]:
    """Return the sum of losses that are computed one after the other, and the norm of its gradient."""
    total = 0.0
    for loss in losses:
        value = loss()
        value.backward()
        total += value.item()
    norm = sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None) ** 0.5
    model.zero_grad()
    return total, float(norm)


def by_engine(engine: Engine) -> Any:
    """Return what computes the loss of all rows as one micro-batch; its backward pass runs in the same context."""

    def loss() -> Any:
        packed = engine.pack(collate(rows(), 0))
        with engine.running(packed):
            value = loss_of(engine, packed)
            value.backward()
        return value.detach().requires_grad_()

    return loss


@pytest.mark.parametrize("family", marked(FAMILIES, HELD))
def test_packed_equals_padded_equals_plain(family: str):
    model = zoo.build(family)
    expected = measured(model, *(lambda row=row: plain_loss(model, collate([row], 0)) for row in rows()))
    engine, _ = choose(model, rows(), 0, CPU, Arrangement())
    if family in SEEN_AHEAD:
        pytest.skip("refused by check_order")
    padded = replace(engine.arrangement, flat=False, share=False)
    for arrangement in dict.fromkeys([engine.arrangement, padded, replace(padded, apart=False)]):
        loss, norm = measured(model, by_engine(Engine(model, arrangement)))
        assert loss == pytest.approx(expected[0], rel=1e-6), arrangement
        assert norm == pytest.approx(expected[1], rel=3e-6), arrangement


@pytest.mark.parametrize("family", marked(FAMILIES, [*HELD[:2], "cpmant", "xlnet"]))
def test_what_a_row_sees_is_known_before_a_run(family: str):
    """Tokens that see those behind them are refused, and rows that padding moves are found; nothing else is."""
    model = zoo.build(family)
    if family in SEEN_AHEAD:
        with pytest.raises(PeftkitError, match="see those behind them"):
            check_order(model, rows(), CPU)
    else:
        check_order(model, rows(), CPU)
    why = "takes the best of what grows with a row" if family in RANKING else MOVED if family == "cpmant" else None
    assert moved_by_padding(Engine(model, PADDED), rows(), 0, CPU) == (why and f"{type(model).__name__} {why}")


@pytest.mark.parametrize("family", marked(list(RANKING), ["doge", "deepseek_v32"]))
def test_rows_run_one_by_one_where_the_best_of_their_keys_are_taken(family: str):
    """Of keys with equal scores, as those of equal tokens, others are taken in a wider row: it is known of all runs."""
    texts = [(row.ids * 2)[: len(row.ids) + 8] for row in rows()]
    repeated = [Encoded([3 + index % 5 for index in ids], ids) for ids in texts]
    within, _ = choose(zoo.build(family, **{RANKING[family]: 64}), repeated, 0, CPU, Arrangement())
    assert within.arrangement == PADDED
    model = zoo.build(family, **{RANKING[family]: 32})
    engine, notices = choose(model, repeated, 0, CPU, Arrangement())
    assert engine.arrangement == replace(PADDED, alone=True)
    assert [text for text in notices if "one after the other" in text] == notices[-1:]
    assert f"{type(model).__name__} takes the best" in notices[-1]
    batch = collate(repeated, 0)
    expected = sum(float(plain_loss(model, collate([row], 0))) for row in repeated)
    for arrangement in (engine.arrangement, replace(engine.arrangement, apart=False)):
        packed = Engine(model, arrangement).pack(batch)
        assert counts(batch, packed) == (batch.tokens, batch.input_ids.numel() - batch.tokens, 0)
        assert float(loss_of(Engine(model, arrangement), packed)) == pytest.approx(expected, rel=1e-6)
    by_asking, notices = choose(model, repeated, 0, CPU, Arrangement(alone=True))
    assert by_asking.arrangement == engine.arrangement
    assert not any("one after the other" in text for text in notices)


def test_what_padding_does_to_long_rows_alone_is_found():
    model = zoo.build("llama")
    norm = cast(Any, model).model.norm
    norm.register_forward_hook(lambda module, args, y: y + y.mean(1, keepdim=True) if y.shape[1] > 20 else y)
    longest = max(rows(), key=lambda row: len(row.ids)).ids
    for length, why in ((20, None), (len(longest), f"LlamaForCausalLM {MOVED}")):
        ids = longest[:length]
        assert moved_by_padding(Engine(model, PADDED), [Encoded(ids, ids)], 0, CPU) == why


def test_a_configuration_that_does_not_fit_its_code_is_refused():
    """Falcon's code takes other numbers of keys and values than of queries in its newer kind of layers alone."""
    model = zoo.build("falcon", multi_query=False, num_kv_heads=2)
    with pytest.raises(PeftkitError, match=r"FalconForCausalLM fails on a row of 16 tokens \(shape .* does not fit"):
        check_order(model, rows(), CPU)


def convolution(x: Any, weight: Any, bias: Any = None, activation: Any = None, seq_idx: Any = None, **rest: Any) -> Any:
    """Convolve over what is before a token in its own row; x is [1, width, N], weight [width, size]."""
    size = weight.shape[1]
    y = torch.zeros_like(x)
    for back in range(size):
        moved = torch.nn.functional.pad(x, (back, 0))[..., : x.shape[2]]
        if seq_idx is not None:
            row = torch.nn.functional.pad(seq_idx, (back, 0), value=-1)[..., : x.shape[2]]
            moved = moved * (row == seq_idx)[:, None]
        y = y + moved * weight[:, size - 1 - back, None]
    return y if bias is None else y + bias[:, None]


def test_layers_with_a_state_are_told_where_rows_begin(monkeypatch: pytest.MonkeyPatch):
    """With a convolution that keeps rows apart, examples are packed, and nothing that they begin with is shared."""
    monkeypatch.setattr(modeling_lfm2_moe, "causal_conv1d_fn", convolution)
    model = zoo.build("lfm2_moe")
    expected = measured(model, *(lambda row=row: plain_loss(model, collate([row], 0)) for row in rows()))
    engine, notices = choose(model, rows(), 0, CPU, Arrangement())
    assert notices == []
    assert engine.arrangement == Arrangement(share=False, bounded=True)
    packed = engine.pack(collate(rows(), 0))
    assert packed.inputs["cu_seq_lens_q"].tolist() == [0, 37, 56, 68, 101, 134]
    assert packed.inputs["seq_idx"].shape == packed.inputs["input_ids"].shape == (1, 134)
    loss, norm = measured(model, by_engine(engine))
    assert loss == pytest.approx(expected[0], rel=1e-6)
    assert norm == pytest.approx(expected[1], rel=3e-6)


def test_layers_that_do_not_heed_where_rows_begin_are_padded(monkeypatch: pytest.MonkeyPatch):
    """A state that leaks into a row by less than the rounding of half precision is found by its gradient."""

    def leaking(*args: Any, seq_idx: Any = None, **rest: Any) -> Any:
        whole, apart = (convolution(*args, seq_idx=each, **rest) for each in (None, seq_idx))
        return apart + 1e-6 * (whole - apart)

    monkeypatch.setattr(modeling_lfm2_moe, "causal_conv1d_fn", leaking)
    engine, notices = choose(zoo.build("lfm2_moe"), rows(), 0, CPU, Arrangement())
    assert engine.arrangement == Arrangement(flat=False)
    assert notices == ["examples are padded, not packed: in Lfm2MoeForCausalLM, a row changes those behind it."]


def test_where_transformers_cannot_keep_rows_apart_it_is_told_once():
    engine, notices = choose(zoo.build("lfm2_moe"), rows(), 0, CPU, Arrangement())
    assert engine.arrangement == Arrangement(flat=False)
    assert len(notices) == 1
    assert "can't keep packed sequences apart without" in notices[0]
