"""AdamW in 8 bits: the library's own steps to the last bit, near those in 32 bits, and states that resume."""

from __future__ import annotations

import sys

import bitsandbytes
import pytest
import torch
from bitsandbytes.optim import AdamW8bit

from peftkit.errors import PeftkitError
from peftkit.optim import adamw_8bit
from peftkit.optim.build import Optimizers, state_bytes
from peftkit.quantization import kernels

LARGE, SMALL = [(64, 64), (300, 301), (5000,)], [(63, 65), (9,)]


def parameters(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def build(tensors, default="adamw-8bit"):
    keys = [str(index) for index in range(len(tensors))]
    groups = [{"params": tensors, "keys": keys, "lr": 1e-2, "weight_decay": 0.1}]
    return Optimizers(groups, betas=(0.8, 0.95), eps=1e-6, default=default)


def gradients(*lists, seed):
    generator = torch.Generator().manual_seed(seed)
    for together in zip(*lists, strict=True):
        drawn = torch.randn(together[0].shape, generator=generator)
        for parameter in together:
            parameter.grad = drawn.clone()


def test_the_steps_are_those_of_bitsandbytes():
    mine, theirs = parameters(LARGE + SMALL), parameters(LARGE + SMALL)
    optimizer = build(mine)
    library = AdamW8bit(theirs, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step, rate in enumerate((1e-2, 3e-3, 0.0, 1e-3)):
        optimizer.param_groups[0]["lr"] = library.param_groups[0]["lr"] = rate
        gradients(mine, theirs, seed=step)
        optimizer.step()
        library.step()
    state = optimizer.state()
    for index in range(len(LARGE)):
        assert torch.equal(mine[index], theirs[index])
        assert state[f"{index}/exp_avg"].dtype == torch.uint8
        assert torch.equal(state[f"{index}/exp_avg"], library.state[theirs[index]]["state1"])
        assert torch.equal(state[f"{index}/exp_avg_sq"], library.state[theirs[index]]["state2"])
        assert torch.equal(state[f"{index}/exp_avg_sq_scale"], library.state[theirs[index]]["absmax2"])
    for index in range(len(LARGE), len(LARGE + SMALL)):
        assert torch.allclose(mine[index], theirs[index], atol=1e-6)
        assert state[f"{index}/exp_avg"].dtype == torch.float32


def test_it_stays_near_adamw_in_32_bits():
    packed, plain = parameters(LARGE), parameters(LARGE)
    begin = [tensor.detach().clone() for tensor in plain]
    optimizers = build(packed), build(plain, "adamw")
    for step in range(10):
        gradients(packed, plain, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    for mine, theirs, start in zip(packed, plain, begin, strict=True):
        assert 0 < torch.linalg.norm(mine - theirs) <= 0.05 * torch.linalg.norm(theirs - start)


def test_its_states_take_a_quarter_and_a_scale_for_256_values():
    groups = [{"params": parameters([(512, 256)]), "keys": ["a"]}]
    assert state_bytes(groups, "adamw-8bit") == 2 * (512 * 256 + 4 * 512)
    assert state_bytes(groups, "adamw") == 8 * 512 * 256


def test_a_loaded_state_goes_on_bit_for_bit():
    whole = parameters(LARGE + SMALL)
    optimizer = build(whole)
    for step in range(3):
        gradients(whole, seed=step)
        optimizer.step()
    again = [torch.nn.Parameter(tensor.detach().clone()) for tensor in whole]
    other = build(again)
    other.load_state({key: value.clone() for key, value in optimizer.state().items()})
    assert all(value.dtype == optimizer.state()[key].dtype for key, value in other.state().items())
    for step in range(3, 6):
        gradients(whole, again, seed=step)
        optimizer.step()
        other.step()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(whole, again, strict=True))


def test_gradients_that_are_not_contiguous_are_taken():
    one, other = parameters([(64, 80)]), parameters([(64, 80)])
    optimizers = build(one), build(other)
    one[0].grad = torch.randn(80, 64, generator=torch.Generator().manual_seed(0)).T
    other[0].grad = one[0].grad.contiguous()
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(one[0], other[0])


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    kernels.bitsandbytes.cache_clear()
    try:
        with pytest.raises(PeftkitError, match=r"adamw-8bit needs bitsandbytes.*adamw-offload"):
            state_bytes([{"params": parameters([(8, 8)]), "keys": ["a"]}], "adamw-8bit")
    finally:
        monkeypatch.setitem(sys.modules, "bitsandbytes", bitsandbytes)
        kernels.bitsandbytes.cache_clear()


def test_a_device_without_such_a_step_is_refused():
    with pytest.raises(PeftkitError, match=r"no step on mtia.*or use adamw"):
        adamw_8bit._check("mtia")
