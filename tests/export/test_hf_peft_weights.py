"""Methods of the weights: what Hugging Face peft computes with our folders, and we with its, to 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.export import export
from peftkit.export.hf_peft import load as load_adapter
from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

peft = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
IDS = torch.arange(3, 40)[None]
MODULES = ["q_proj", "v_proj", "up_proj"]
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "hira": ("hira", {"rank": 4}, "HiraConfig", {"r": 3}),
    "loha": ("loha", {"rank": 3, "alpha": 6}, "LoHaConfig", {"r": 4, "alpha": 2}),
    "lokr": ("lokr", {"rank": 1, "alpha": 2, "factor": 4, "decompose_both": True}, "LoKrConfig", {"r": 2, "alpha": 6}),
    "krona": ("krona", {"scale": 2.0}, "LoKrConfig", {"r": 64, "alpha": 96}),
    "gralora": ("gralora", {"rank": 4, "hybrid": 2}, "GraloraConfig", {"r": 4, "gralora_k": 4, "alpha": 8}),
    "delora": ("delora", {"rank": 4, "strength": 5.0}, "DeloraConfig", {"r": 3}),
    "miss": ("miss", {"rank": 5}, "MissConfig", {"r": 6}),
    "miss-bat": ("miss", {"rank": 4, "variant": "bat"}, "MissConfig", {"r": 8, "init_weights": "bat"}),
    "miss-mini": (
        "miss",
        {"rank": 4, "variant": "mini", "mini": 8},
        "MissConfig",
        {"r": 8, "init_weights": "mini", "mini_r": 4},
    ),
    "road-1": ("road", {"group": 8}, "RoadConfig", {"group_size": 4}),
    "road-2": ("road", {"variant": 2, "group": 16}, "RoadConfig", {"variant": "road_2", "group_size": 4}),
    "road-4": ("road", {"variant": 4, "group": 4}, "RoadConfig", {"variant": "road_4", "group_size": 8}),
    "hra": ("hra", {"rank": 4}, "HRAConfig", {"r": 6}),
    "oft": ("oft", {"block": 8}, "OFTConfig", {"oft_block_size": 8, "use_cayley_neumann": False}),
    "oft-series": ("oft", {"block": 4, "terms": 4, "block_share": True}, "OFTConfig", {"oft_block_size": 8}),
    "boft": ("boft", {"block": 8}, "BOFTConfig", {"boft_block_size": 4}),
    "fourierft": ("fourierft", {"count": 40, "seed": 3}, "FourierFTConfig", {"n_frequency": 50}),
    "waveft": ("waveft", {"count": 40}, "WaveFTConfig", {"n_frequency": 50, "random_loc_seed": 5}),
    "c3a": ("c3a", {"block": 8}, "C3AConfig", {"block_size": 4}),
    "hiwi": ("hiwi", {"rank": 4, "activation": "gelu"}, "PeanutConfig", {"r": 3, "depth": 0, "scaling": 2.0}),
    "randlora": ("randlora", {"rank": 6, "alpha": 20}, "RandLoraConfig", {"r": 5, "randlora_alpha": 40}),
    "vblora": (
        "vblora",
        {"vectors": 12, "length": 8, "top": 3},
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 9, "vector_length": 16},
    ),
    "unilora": ("unilora", {"length": 200}, "UniLoraConfig", {"r": 3, "theta_d_length": 90, "save_indices": True}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], str, dict[str, Any]]:
    return CASES[request.param]


def test_their_library_opens_our_folder_with_equal_logits(case: Any, make_run: Any, tmp_path: Path) -> None:
    name, options, _, _ = case
    run = make_run("llama", {name: {"targets": ["q", "v", "up"], **options}})
    report = export(run.folder, tmp_path / "adapter", "hf-peft")
    with quiet(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        logits = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits
    torch.testing.assert_close(logits, run.logits(), atol=1e-5, rtol=0)
    assert report["adapter_effect"] > 1e-3


def test_their_folder_is_read_with_equal_logits(case: Any, tmp_path: Path) -> None:
    _, _, kind, options = case
    with quiet(), torch.no_grad():
        config = getattr(peft, kind)(target_modules=MODULES, task_type="CAUSAL_LM", **options)
        theirs = peft.get_peft_model(tiny("llama"), config).eval()
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
        theirs.save_pretrained(tmp_path)
        expected, ours = theirs(IDS).logits, tiny("llama")
        load_adapter(tmp_path, ours)
        torch.testing.assert_close(ours(IDS).logits, expected, atol=1e-5, rtol=0)
        assert (expected - tiny("llama")(IDS).logits).abs().max() > 1e-3
