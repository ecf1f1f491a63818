"""Attention along a tree equals plain attention under the mask of who sees whom, in value and gradient."""

from __future__ import annotations

import random
from itertools import chain

import flash_kernel
import pytest
import torch
from torch import Tensor

from peftkit.kernels import fused_attention, varlen_attention
from peftkit.kernels.tree import QUERIES, Tree, grow
from peftkit.kernels.tree_attention import Products, Softmax, attend
from peftkit.kernels.tree_plan import TreePlan, alike, plan_of

SIZE, SCALE = 8, 0.3


def texts(*lengths: int, shared: int = 0) -> list[list[int]]:
    """Rows of random tokens; all of them begin with the same `shared` ones."""
    draw = random.Random(0)
    start = [draw.randrange(1000) for _ in range(shared)]
    return [start + [draw.randrange(1000) for _ in range(length)] for length in lengths]


TEXTS = {
    "apart": texts(7, 30, 1, 22),
    "shared": [*texts(5, 17, 29, 1, shared=20), *texts(3, 40), *texts(1, shared=20)],
    "one inside another": [*texts(9, shared=15), texts(9, shared=15)[0][:15]],
    "the same": texts(20) * 3,
    "long": texts(QUERIES + 90, 6),
}


def visible(tree: Tree, window: int | None, first: int) -> Tensor:
    """The mask [N, first + N] of who sees whom, from the rows alone."""
    seen = torch.zeros(len(tree.ids), len(tree.ids), dtype=torch.bool)
    for row in tree.rows:
        for at, place in enumerate(row):
            begin = 0 if window is None else max(0, at + 1 - window)
            seen[place, row[begin : at + 1]] = True
    return torch.cat([torch.ones(len(tree.ids), first, dtype=torch.bool), seen], dim=1)


def plain(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, cap: float | None) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    scores = (q @ k.repeat_interleave(repeats, 1).transpose(-1, -2)) * SCALE
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(repeats, 1)).transpose(1, 2)


def drawn(heads: int, groups: int, count: int, keys: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, count, SIZE), (1, groups, keys, SIZE), (1, groups, keys, SIZE))
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def chosen(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, cap: float | None) -> Tensor:
    return attend(q, k, v, plan, first=first, scale=SCALE, cap=cap)


def products(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, cap: float | None) -> Tensor:
    return Products.apply(q[0], k[0], v[0], plan, first, Softmax(SCALE, cap))[None]


def padded(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, first: int, cap: float | None) -> Tensor:
    """Compute the products of blocks padded to few shapes, as on a GPU."""
    if k.shape[2] > first:
        plan._buckets[first, True] = [plan._bucket(blocks, first) for blocks in alike(plan.tree.blocks)]
    return products(q, k, v, plan, first, cap)


FUNCTIONS = {"chosen": chosen, "products": products, "padded": padded}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
@pytest.mark.parametrize("rows", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(("window", "first", "cap"), [(None, 0, None), (None, 3, None), (6, 0, 4.0), (6, 3, None)])
def test_it_equals_plain_attention(function, rows, groups, window, first, cap):
    tree = grow(rows)
    q, k, v = drawn(4, groups, len(tree.ids), first + len(tree.ids))
    y = function(q, k, v, plan_of(tree, window), first, cap)
    expected = plain(q, k, v, visible(tree, window, first), cap)
    given = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    for one, two in zip(*(torch.autograd.grad(z, (q, k, v), given) for z in (y, expected)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_keys_in_front_alone_are_a_softmax_of_their_own(function):
    tree = grow(TEXTS["shared"])
    q, k, v = drawn(4, 2, len(tree.ids), 5)
    y = function(q, k, v, plan_of(tree), 5, None)
    expected = plain(q, k, v, torch.ones(len(tree.ids), 5, dtype=torch.bool), None)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    given = torch.ones_like(y)
    for one, two in zip(*(torch.autograd.grad(z, (q, k, v), given) for z in (y, expected)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("size", [SIZE, 5], ids=["alike", "other values"])
@pytest.mark.parametrize(
    ("window", "first", "text"), [(None, 0, True), (None, 3, True), (6, 0, True), (None, 5, False)]
)
def test_a_sink_takes_its_part_of_every_softmax(groups, size, window, first, text):
    tree = grow(TEXTS["shared"])
    q, k, v = drawn(4, groups, len(tree.ids), first + (len(tree.ids) if text else 0))
    v, sink = v[..., :size], torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    y = attend(q, k, v, plan_of(tree, window), first=first, scale=SCALE, sink=sink)
    seen, repeats = visible(tree, window, first), 4 // groups
    scores = (q @ k.repeat_interleave(repeats, 1).transpose(-1, -2)) * SCALE
    scores = scores.masked_fill(~(seen if text else seen[:, :first]), -torch.inf)
    weights = torch.cat([scores, sink.view(1, 4, 1, 1).expand(-1, -1, len(tree.ids), -1)], -1).softmax(-1)[..., :-1]
    expected = (weights @ v.repeat_interleave(repeats, 1)).transpose(1, 2)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    given = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    for one, two in zip(*(torch.autograd.grad(z, (q, k, v, sink), given) for z in (y, expected)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-10)


def test_the_fused_kernel_runs_where_it_can(monkeypatch):
    tree = grow(TEXTS["shared"])
    q, k, v = drawn(4, 2, len(tree.ids), len(tree.ids))

    def runs(**asked) -> str:
        return type(attend(q, k, v, plan_of(tree), scale=SCALE, **asked).grad_fn.next_functions[0][0]).__name__

    assert [runs(), runs(cap=4.0), runs(dropout=0.1)] == ["FusedBackward", *["ProductsBackward"] * 2]
    monkeypatch.setattr(fused_attention, "PRESENT", False)
    assert runs() == "ProductsBackward"


def test_torch_has_the_public_function():
    assert varlen_attention.PRESENT


@pytest.mark.parametrize("rows", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(
    ("window", "first", "text"), [(None, 0, True), (None, 3, True), (6, 0, True), (None, 5, False)]
)
def test_runs_of_queries_equal_plain_attention(monkeypatch, rows, groups, window, first, text):
    monkeypatch.setattr(varlen_attention, "varlen_attn", flash_kernel.varlen_attn)
    tree = grow(rows)
    q, k, v = drawn(4, groups, len(tree.ids), first + (len(tree.ids) if text else 0))
    y = varlen_attention.attend(q[0], k[0], v[0], plan_of(tree, window), first, SCALE).unsqueeze(0)
    seen = visible(tree, window, first)
    expected = plain(q, k, v, seen if text else seen[:, :first], None)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    given = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    for one, two in zip(*(torch.autograd.grad(z, (q, k, v), given) for z in (y, expected)), strict=True):
        # What came to the copies of a key is added up in fp32.
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert not torch.are_deterministic_algorithms_enabled()


def test_texts_that_go_on_are_one_run():
    chain_ = texts(30)[0]
    edges = plan_of(grow([chain_[:10], chain_[:20], chain_])).edges(0, True)
    assert edges.queries.tolist() == [0, 30] == edges.keys.tolist()
    assert edges.index is None
    assert plan_of(grow(TEXTS["long"])).edges(0, True).longest == (QUERIES + 90, QUERIES + 90)
    assert plan_of(grow(TEXTS["shared"])).edges(0, True).index is not None


def test_a_processor_goes_run_by_run():
    def runs(rows: list[list[int]], window: int | None = None, first: int = 0) -> list[tuple[int, int]]:
        return [(run.length, run.count) for run in TreePlan(grow(rows), window).runs(first)]

    chain_ = texts(30)[0]
    assert runs([chain_[:10], chain_[:20], chain_]) == [(30, 0)] == runs([chain_[:10], chain_], first=3)
    # Without a mask a run may have any length.
    assert runs(TEXTS["long"]) == [(6, 0), (QUERIES + 90, 0)]
    assert runs(TEXTS["long"], first=3) == [(6, 0), (QUERIES, 0), (90, QUERIES)] == runs(TEXTS["long"], window=9)
    assert runs(texts(4, 9, shared=20)) in ([(24, 0), (9, 20)], [(29, 0), (4, 20)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "first"), [("apart", 0), ("apart", 3), ("shared", 0)])
def test_tokens_that_stand_behind_a_row_do_not_touch_it(dtype, rows, first):
    tree = grow(TEXTS[rows])
    own, given = torch.from_numpy(tree.rows[0]), torch.ones(1, len(tree.ids), 4, SIZE, dtype=dtype)
    others = torch.ones(len(tree.ids), dtype=torch.bool).index_fill_(0, own, False).nonzero().flatten()
    found = []
    for factor in (1.0, 1e4):
        q, k, v = (x.detach().to(dtype) for x in drawn(4, 2, len(tree.ids), first + len(tree.ids)))
        for x in (k, v):
            x[:, :, first + others] *= factor
        q.requires_grad_()
        y = attend(q, k, v, plan_of(tree), first=first, scale=SCALE)
        (of_q,) = torch.autograd.grad(y, q, given)
        found.append((y[:, own], of_q[:, :, own]))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", TEXTS.values(), ids=list(TEXTS))
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(
    ("window", "first", "text"), [(None, 0, True), (None, 3, True), (6, 0, True), (None, 5, False)]
)
def test_a_gpu_equals_plain_attention(rows, groups, window, first, text):
    tree = grow(rows).to(torch.device("cuda"))
    exact = [x.detach().cuda() for x in drawn(4, groups, len(tree.ids), first + (len(tree.ids) if text else 0))]
    q, k, v = (x.bfloat16().requires_grad_() for x in exact)
    plan = plan_of(tree, window)
    assert varlen_attention.possible(q, v, plan, first)
    y = attend(q, k, v, plan, first=first, scale=SCALE)
    seen = visible(tree, window, first).cuda()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = plain(wide[0], wide[1], wide[2], seen if text else seen[:, :first], None)
    given = torch.randn_like(expected).bfloat16()
    found = torch.autograd.grad(y, (q, k, v), given, retain_graph=True)
    for one, two in zip((y, *found), (expected, *torch.autograd.grad(expected, wide, given.double())), strict=True):
        assert (one.double() - two).norm() < 0.01 * two.norm()
    for one, two in zip(found, torch.autograd.grad(y, (q, k, v), given), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("first", [0, 3])
def test_gradients_in_bf16_are_those_of_fp32_rounded(first):
    tree = grow(TEXTS["shared"])
    tensors = [tensor.bfloat16().detach() for tensor in drawn(4, 2, len(tree.ids), first + len(tree.ids))]
    given = torch.randn(1, len(tree.ids), 4, SIZE, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        q, k, v = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        y = attend(q, k, v, plan_of(tree), first=first, scale=SCALE)
        found.append([y, *torch.autograd.grad(y, (q, k, v), given.to(dtype))])
    for one, two in zip(*found, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - two).norm() < 0.01 * two.norm()


def test_dropout_keeps_the_mean_and_sees_no_other_row():
    tree = grow(TEXTS["apart"])
    q, k, v = drawn(2, 2, len(tree.ids), len(tree.ids))
    torch.manual_seed(0)
    ys = [attend(q, k, v, plan_of(tree), scale=SCALE, dropout=0.3) for _ in range(400)]
    expected = plain(q, k, v, visible(tree, None, 0), None)
    assert not torch.equal(ys[0], ys[1])
    assert (torch.stack(ys).mean(0) - expected).abs().max() < 0.35
    (of_k,) = torch.autograd.grad(ys[0][0, tree.rows[0]].sum(), k)
    others = torch.from_numpy(tree.rows[1])
    assert bool((of_k[0, :, others] == 0).all())


@pytest.mark.parametrize("padded", [False, True])
def test_dropout_falls_alike_in_both_passes(padded):
    tree = grow(TEXTS["apart"])
    plan = plan_of(tree)
    if padded:
        plan._buckets[3, True] = [plan._bucket(blocks, 3) for blocks in alike(tree.blocks)]
    q, k, v = drawn(4, 2, len(tree.ids), 3 + len(tree.ids))

    def run(*given: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attend(*given, plan, first=3, scale=SCALE, dropout=0.5).sin()

    assert torch.autograd.gradcheck(run, (q, k, v), fast_mode=True)


def test_a_tree_holds_each_shared_token_once():
    rows = TEXTS["shared"]
    tree = grow(rows)
    for row, places in zip(rows, tree.rows, strict=True):
        assert tree.ids[torch.from_numpy(places)].tolist() == row
        assert tree.positions[torch.from_numpy(places)].tolist() == list(range(len(row)))
    assert sorted(set(chain.from_iterable(places.tolist() for places in tree.rows))) == list(range(len(tree.ids)))
    assert tree.saved == sum(map(len, rows)) - len(tree.ids) > 0
    assert grow(rows, share=False).saved == 0


def test_beginnings_of_a_few_tokens_are_not_shared():
    assert grow(texts(10, 10, shared=7)).saved == 0
    assert grow(texts(10, 10, shared=8)).saved == 8
