"""`peft doctor`: what is read of the machine, and which optional packages are missing."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch

from peftkit import device, doctor
from peftkit.kernels import fused_attention, varlen_attention
from peftkit_cli.main import main

LINES = [
    "torch>=2.0",
    "accelerate>=1; extra == 'gguf'",
    "nowhere-at-all>=1; extra == 'gguf'",
    "rich>=999; extra == 'old'",
    "rich>=1; extra == 'there'",
    "nowhere-at-all; extra == 'elsewhere' and sys_platform == 'no-such-system'",
    "nowhere-at-all; extra == 'dev'",
]


def test_missing_packages_and_versions_out_of_bounds_are_told_by_extra():
    found = {extra.name: extra.lacking for extra in doctor.optional(LINES)}
    rich = metadata.version("rich")
    assert found["gguf"][-1] == "nowhere-at-all"
    assert found["old"] == (f"rich {rich}, wanted >=999",)
    assert found["there"] == found["elsewhere"] == ()
    assert "dev" not in found
    assert doctor.Extra("gguf", ("x",)).command == "pip install 'peftkit[gguf]'"


def test_versions_device_precision_and_kernels_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(metadata, "requires", lambda name: LINES)
    assert main(["doctor"]) == 0
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines() if line.strip()]
    facts = {words[0]: words[1] for words in lines if len(words) == 2}
    assert facts["torch"].strip() == metadata.version("torch")
    assert facts["device"].startswith(device.choose_device("auto").type)
    assert facts["old"].split()[-3:] == ["pip", "install", "'peftkit[old]'"]
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["threads"] == torch.get_num_threads()
    assert told["extras"][-1] == {"name": "there", "lacking": []}


def test_a_checkout_that_is_not_installed_says_so(monkeypatch, capsys):
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert main(["doctor"]) == 0
    assert "peftkit is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "precision", "kernel"), [("cpu", "fp32", fused_attention), ("cuda", "bf16", varlen_attention)]
)
def test_the_kernel_of_attention_is_the_one_that_torch_has(monkeypatch, kind, precision, kernel):
    monkeypatch.setattr(kernel, "PRESENT", True)
    quick = doctor._kernels(torch.device(kind), precision)["packed attention"]
    monkeypatch.setattr(kernel, "PRESENT", False)
    assert doctor._kernels(torch.device(kind), precision)["packed attention"].startswith("batched products")
    assert not quick.startswith("batched products")


def test_a_gpu_in_full_precision_has_no_kernel_for_halves():
    assert doctor._kernels(torch.device("cuda"), "fp32")["packed attention"].startswith("batched products")


def test_a_processor_without_bf16_computes_in_fp32_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    chosen = device.usual_precision(torch.device("cpu"))
    assert chosen.name == "fp32"
    assert "AVX512-BF16" in str(chosen.notice)


def test_a_processor_with_bf16_takes_what_the_measurement_says(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    monkeypatch.setattr(device, "product_seconds", lambda *_: (0.004, 0.001))
    assert device.usual_precision(torch.device("cpu")).name == "bf16"
    monkeypatch.setattr(device, "product_seconds", lambda *_: (0.004, 0.0035))
    assert device.usual_precision(torch.device("cpu")).name == "fp32"
