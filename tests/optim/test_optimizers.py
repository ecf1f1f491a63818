"""Several optimizers as one: steps, rates, states by key; and one AdamW, which is torch's own to the last bit."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.methods.full import Full
from peftkit.methods.galore import GaLore
from peftkit.methods.lora import LoRA
from peftkit.methods.lora_plus import LoRAPlus
from peftkit.models.tiny import tiny
from peftkit.optim import OPTIMIZERS
from peftkit.optim.build import Optimizers, state_bytes

IDS = torch.arange(3, 27).view(2, 12)


def attached(*methods):
    return attach(tiny("gpt2"), list(methods))


def backward(adaptation):
    adaptation.model(input_ids=IDS, labels=IDS).loss.backward()


def values(adaptation):
    return {key: tensor.clone() for key, tensor in adaptation.state().items()}


@pytest.mark.parametrize("methods", [(Full(),), (LoRA(), LoRAPlus(targets=("o",), bias="all"))], ids=["one", "several"])
@pytest.mark.parametrize("name", ["adamw", "adamw-offload"])
def test_adamw_is_that_of_torch_bit_for_bit(methods, name):
    found = []
    for build in (partial(Optimizers, default=name), partial(torch.optim.AdamW, fused=True)):
        adaptation = attached(*methods)
        groups = adaptation.groups(1e-2, 0.1)
        optimizer = build(groups, betas=(0.8, 0.95), eps=1e-6)
        assert [group["params"] for group in optimizer.param_groups] == [group["params"] for group in groups]
        for rate in (1e-2, 3e-3, 1e-3):
            for group in optimizer.param_groups:
                group["lr"] = rate
            backward(adaptation)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        found.append((values(adaptation), optimizer, [key for group in groups for key in group["keys"]]))
    (mine, optimizer, _), (plain, torchs, keys) = found
    assert all(torch.equal(mine[key], value) for key, value in plain.items())
    states = optimizer.state()
    for index, state in torchs.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(states.pop(f"{keys[index]}/{name}"), value)
    assert not states


def test_two_optimizers_train_one_adaptation_each_at_its_rate():
    adaptation = attached(GaLore(targets="mlp", rank=4, interval=5, learning_rate=2e-2), LoRA(learning_rate=1e-3))
    optimizer = Optimizers(adaptation.groups(None, 0.0))
    assert len(optimizer.parts) == 2
    assert {group["lr"] for group in optimizer.param_groups} == {2e-2, 1e-3}
    assert {(group.get("rank"), group.get("interval")) for group in optimizer.param_groups} == {(4, 5), (None, None)}
    for still in (2e-2, 1e-3):
        before = values(adaptation)
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if group["lr"] == still else group["lr"]
        backward(adaptation)
        optimizer.step()
        optimizer.zero_grad()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        assert all(parameter.grad is None for _, parameter in adaptation.parameters())
        moved = {key.split("/")[0] for key, value in adaptation.state().items() if not torch.equal(value, before[key])}
        assert moved == ({"1"} if still == 2e-2 else {"0"})


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "adamw-offload"])
def test_the_states_of_two_optimizers_are_kept_by_key_and_go_on_bit_for_bit(name):
    # The largest matrix of this rank has 4096 values: its moments are packed in 8 bits.
    methods = (GaLore(targets="mlp", rank=4, interval=2), LoRA(rank=32, targets=("q", "down")))
    whole, resumed = attached(*methods), attached(*methods)
    optimizer, other = (Optimizers(adaptation.groups(1e-2, 0.1), default=name) for adaptation in (whole, resumed))
    for step in range(5):
        if step == 3:
            state = {key: value.clone() for key, value in optimizer.state().items()}
            resumed.load_state(values(whole))
            other.load_state(state)
        for adaptation, taken in ((whole, optimizer), (resumed, other)) if step >= 3 else ((whole, optimizer),):
            backward(adaptation)
            taken.step()
            taken.zero_grad()
    assert {key.rpartition("/")[0] for key in state} == {key for key, _ in whole.parameters()}
    assert all(torch.equal(value, resumed.state()[key]) for key, value in whole.state().items())


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_bytes_foretold_are_those_of_the_states(name):
    sizes = [(12, 8), (8, 12), (9, 9), (64, 65)]
    parameters = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    keys = [str(index) for index in range(len(sizes))]
    groups = [{"params": parameters, "keys": keys, "lr": 0.1, "weight_decay": 0.0, "optimizer": name, "rank": 3}]
    optimizer = Optimizers(groups)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    tensors = [value for key, value in optimizer.state().items() if not key.endswith("/step")]
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) == state_bytes(groups)


def test_an_optimizer_that_is_not_there_is_refused_with_the_nearest():
    group = {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "keys": ["a"], "lr": 0.1, "weight_decay": 0.0}
    with pytest.raises(PeftkitError, match="adamw"):
        Optimizers([{**group, "optimizer": "adamv"}])


def test_the_state_of_another_adaptation_is_refused():
    optimizer = Optimizers(attached(LoRA()).groups(1e-2, 0.0))
    with pytest.raises(PeftkitError, match="names 7/own/x, which is not trained here"):
        optimizer.load_state({"7/own/x/exp_avg": torch.zeros(2)})
