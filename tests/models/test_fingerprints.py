"""The fingerprint of a base: the same for the same weights, another for any other, blind to adapters."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach
from peftkit.method import METHODS
from peftkit.models.fingerprint import fingerprint
from peftkit.models.tiny import ARCHITECTURES, tiny


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_same_in_every_dtype_and_tells_models_apart(architecture: str) -> None:
    model = tiny(architecture)
    mark = fingerprint(model)
    assert mark == fingerprint(tiny(architecture).bfloat16())
    assert mark != fingerprint(tiny(architecture, seed=1))
    assert fingerprint(model, torch.float16) == fingerprint(tiny(architecture).half())


def test_every_architecture_has_its_own() -> None:
    assert len({fingerprint(tiny(architecture)) for architecture in ARCHITECTURES}) == len(ARCHITECTURES)


def test_a_setting_without_parameters_counts() -> None:
    assert fingerprint(tiny("llama")) != fingerprint(tiny("llama", rope_parameters={"rope_theta": 1e6}))


def test_a_changed_value_counts() -> None:
    model = tiny("llama")
    mark = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    assert fingerprint(model) != mark


def test_seated_adapters_do_not_count() -> None:
    model = tiny("gpt2")
    mark = fingerprint(model)
    attach(model, [METHODS["lora"].from_options({"targets": ["q", "head"]})])
    assert fingerprint(model) == mark


def test_there_is_none_on_the_meta_device() -> None:
    assert fingerprint(tiny("llama").to("meta")) is None  # type: ignore[call-overload]
