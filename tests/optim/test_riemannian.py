"""Riemannian preconditioning: two steps by the formulas, which factors are pairs, and AdamW for all else."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers, state_bytes

BETAS, EPS, RATE, DECAY = (0.8, 0.9), 1e-8, 0.01, 0.3


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(tensors, pairs):
    keys = [str(index) for index in range(len(tensors))]
    groups = [
        {"params": [tensor], "keys": [key], "lr": RATE, "weight_decay": DECAY, "pairs": own}
        for tensor, key, own in zip(tensors, keys, pairs, strict=True)
    ]
    return Optimizers(groups, betas=BETAS, eps=EPS, default="riemannian")


@pytest.mark.parametrize("shapes", [((2, 5), (4, 2)), ((3, 3), (3, 3)), ((2, 2, 5), (2, 4, 2))])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_two_steps_follow_the_formulas(shapes, start):
    factors = [torch.nn.Parameter(drawn(shape, seed)) for seed, shape in enumerate(shapes)]
    with torch.no_grad():
        factors[1].mul_(start)
    twins = [torch.nn.Parameter(factor.detach().clone()) for factor in factors]
    # The factors are in groups of their own, as with rates of their own.
    optimizer = build(factors, [[("0", "1")], []])
    plain = torch.optim.AdamW(twins, lr=RATE, weight_decay=DECAY, betas=BETAS, eps=EPS)
    one = 1e-6 * torch.eye(shapes[0][-2], dtype=torch.float64)
    for step in range(2):
        of_a, of_b = (drawn(shape, 10 * step + index + 5) for index, shape in enumerate(shapes))
        a, b = (twin.detach() for twin in twins)
        twins[0].grad = torch.linalg.inv(b.mT @ b + one) @ of_a
        twins[1].grad = of_b @ torch.linalg.inv(a @ a.mT + one)
        factors[0].grad, factors[1].grad = of_a.clone(), of_b.clone()
        plain.step()
        optimizer.step()
        assert all(torch.allclose(*pair, atol=1e-9) for pair in zip(factors, twins, strict=True))


def test_a_factor_alone_and_all_else_are_stepped_by_adamw():
    mine, theirs = ([torch.nn.Parameter(drawn((2, 2), seed)) for seed in range(3)] for _ in range(2))
    # The partner of the first is trained elsewhere, that of the second has no gradient.
    optimizer = build(mine, [[("0", "7")], [("1", "2")], []])
    plain = torch.optim.AdamW(theirs, lr=RATE, weight_decay=DECAY, betas=BETAS, eps=EPS)
    for step in range(2):
        for tensors in (mine, theirs):
            tensors[0].grad, tensors[1].grad = drawn((2, 2), 20 + step), drawn((2, 2), 30 + step)
        optimizer.step()
        plain.step()
    assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(("name", "paired"), [("lora", True), ("lora-plus", True), ("dora", True), ("lora-fa", False)])
def test_pairs_of_adapters_are_found(name, paired):
    adaptation = attach(tiny("llama"), [METHODS[name]()])
    groups = adaptation.groups(1e-3, 0.0)
    found = [pair for group in groups for pair in group["pairs"]]
    keys = sorted(key[:-2] for key, _ in adaptation.parameters() if key.endswith("/A"))
    assert sorted(found) == [(f"{key}/A", f"{key}/B") for key in keys]
    assert bool(found) == paired
    assert state_bytes(groups, "riemannian") == state_bytes(groups, "adamw")
    # AdamW's first step has one size whatever the gradient is, the second one depends on it.
    ends = []
    for optimizer in (Optimizers(groups, default="riemannian"), Optimizers(groups)):
        torch.manual_seed(0)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        for _ in range(2):
            for _, parameter in adaptation.parameters():
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        ends.append({key: parameter.detach().clone() for key, parameter in adaptation.parameters()})
    same = {key for key, value in ends[0].items() if torch.allclose(value, ends[1][key], atol=1e-6)}
    assert same == (set() if paired else set(ends[0])) | {key for key in ends[0] if key.endswith("/m")}
