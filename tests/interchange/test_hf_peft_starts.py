"""Folders of Hugging Face peft whose options change the base or what is computed: equal logits, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft import load
from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

hub = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
IDS = torch.arange(3, 40)[None]


def write(folder: Path, architecture: str, config: Any) -> torch.Tensor:
    """Have the library write a folder of random values; returns the logits that it gives once it has opened it."""
    generator = torch.Generator().manual_seed(3)
    with quiet(), torch.no_grad():
        theirs = hub.get_peft_model(tiny(architecture), config)
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        theirs.save_pretrained(folder)
        return hub.PeftModel.from_pretrained(tiny(architecture), folder).eval()(input_ids=IDS).logits


def logits(folder: Path, architecture: str) -> torch.Tensor:
    ours = tiny(architecture)
    load(folder, ours)
    with torch.no_grad():
        return ours(IDS).logits


def check(folder: Path, architecture: str, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits(folder, architecture), expected, atol=2e-5, rtol=0)
    with torch.no_grad():
        assert (expected - tiny(architecture)(IDS).logits).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian", "orthogonal", "mica", False])
@pytest.mark.parametrize("stable", [False, True])
def test_a_start_is_found_again(architecture: str, start: Any, stable: bool, tmp_path: Path) -> None:
    targets = ["q_proj", "v_proj", "down_proj"] if architecture == "llama" else ["c_attn", "c_fc"]
    if (architecture, start) == ("gpt2", "olora"):
        pytest.skip("the library fails on transposed weights")
    ranks = (
        {} if start in ("orthogonal", "mica") else {"rank_pattern": {targets[0]: 2}, "alpha_pattern": {targets[1]: 5}}
    )
    config = hub.LoraConfig(
        r=4, lora_alpha=9, target_modules=targets, init_lora_weights=start, use_rslora=stable, **ranks
    )
    check(tmp_path, architecture, write(tmp_path, architecture, config))


def test_a_start_changes_the_logits(tmp_path: Path) -> None:
    """Were it overlooked, the same tensors would give others."""
    expected = write(tmp_path, "llama", hub.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": True}))
    assert (logits(tmp_path, "llama") - expected).abs().max() > 0.1


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga", "loftq", "Novel"])
def test_a_start_that_cannot_be_found_again_is_refused(start: str, tmp_path: Path) -> None:
    write(tmp_path, "llama", hub.LoraConfig(target_modules=["q_proj"]))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start}))
    with pytest.raises(PeftkitError, match=f"init_lora_weights is '{start}'.*path_initial_model_for_weight_conversion"):
        logits(tmp_path, "llama")


CHANGING = {
    "LORA": {
        "use_qalora": True,
        "alora_invocation_tokens": [3],
        "layer_replication": [[0, 1]],
        "use_bdlora": {"x": 1},
        "kasa_config": {"x": 1},
        "bias": "some",
        "novelty": 1,
    },
    "LOHA": {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2}, "use_effective_conv2d": True},
    "LOKR": {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q_proj": 2}},
    "IA3": {"novelty": 2},
    "VERA": {"bias": "all"},
    "OFT": {"bias": "all", "coft": True},
    "PROMPT_TUNING": {"num_transformer_submodules": 2},
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in CHANGING.items() for key in keys])
def test_an_option_that_is_not_read_is_refused(kind: str, key: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    sizes = {"LORA": {"lora_alpha": 8}, "LOHA": {"alpha": 8}, "LOKR": {"alpha": 8}, "VERA": {}, "OFT": {}}
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": kind, **({"r": 4, **sizes[kind]} if kind in sizes else {}), key: CHANGING[kind][key]})
    )
    with pytest.raises(PeftkitError, match=rf"adapter_config\.json.*{key}"):
        load(tmp_path, tiny("llama"))


@pytest.mark.parametrize("kind", sorted(hub.PeftType.__members__))
def test_what_the_library_writes_by_default_is_no_reason_to_refuse(kind: str) -> None:
    """Every option of every type that is read is known, at the value that it has by default."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from peftkit.export.hf_peft.converter import CONVERTERS
    from peftkit.export.hf_peft.options import check_options

    if kind not in {converter.peft_type for _, converter in CONVERTERS.items()}:
        pytest.skip("not read")
    needed: Any = {"total_step": 10} if kind == "ADALORA" else {}
    config = PEFT_TYPE_TO_CONFIG_MAPPING[hub.PeftType[kind]](**needed).to_dict()
    check_options(
        {key: list(value) if isinstance(value, set) else value for key, value in config.items()} | {"peft_type": kind}
    )
