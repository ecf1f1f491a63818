"""The same weights give the same logits in AdapterHub's adapters, for what it has in common with peftkit.

adapters wants an older transformers, so that it computes in an environment of its own, `.venv-adapters`. What it must
be told for the same function:

- Sizes: `reduction_factor` is the width over peftkit's bottleneck. Starts do not matter, all tensors are random.
- Double sequential adapters need nothing: both compute o + U act(D o + b) + c before the residual r is added. peftkit
  takes the activation of adapters, silu.
- The single sequential one (Pfeiffer) and Compacter++ give o + U act(D (o + r) + b) + c as they come, the place behind
  a norm of BERT carried over to models that have none there. peftkit reads o: `original_ln_before=False`.
- Parallel adapters read r, in front of the norm, as they come, and no field changes that. peftkit reads what the
  sublayer reads, behind the norm. The interface of adapters for models that it does not know puts the hooks where one
  says: `layer_pre_ffn` (`layer_pre_self_attn`) names the module whose input is read.
- Prefixes need nothing: neither moves the positions of the text.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftkit.adaptation import attach
from peftkit.method import METHODS
from peftkit.models.tiny import SETTINGS, VOCABULARY, tiny

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-adapters"
SMALL = {"bottleneck": 8}
QUARTER = {"reduction_factor": 4}
HOOKS = {
    "llama": {
        "model_embeddings": "embed_tokens",
        "model_layers": "layers",
        "layer_self_attn": "self_attn",
        "layer_cross_attn": None,
        "attn_q_proj": "q_proj",
        "attn_k_proj": "k_proj",
        "attn_v_proj": "v_proj",
        "attn_o_proj": "o_proj",
        "layer_intermediate_proj": "mlp.up_proj",
        "layer_output_proj": "mlp.down_proj",
        "layer_pre_self_attn": "self_attn.q_proj",
        "layer_pre_ffn": "mlp",
    },
    "gpt2": {
        "model_embeddings": "wte",
        "model_layers": "h",
        "layer_self_attn": "attn",
        "layer_cross_attn": None,
        "attn_qkv_proj": "c_attn",
        "attn_o_proj": "c_proj",
        "layer_intermediate_proj": "mlp.c_fc",
        "layer_output_proj": "mlp.c_proj",
        "layer_pre_self_attn": "attn.c_attn",
        "layer_pre_ffn": "mlp",
    },
}
"""Where the interface of adapters finds the parts of a model, and in front of which it reads for parallel adapters."""


@dataclass(frozen=True)
class Case:
    """A method of peftkit with its options and the configuration of adapters that is meant to be the same."""

    method: str | None
    options: dict[str, Any]
    config: str | None
    theirs: dict[str, Any] = field(default_factory=dict)
    hooked: bool = False


CASES = {
    "base": Case(None, {}, None),
    "serial": Case("serial-adapter", SMALL | {"activation": "silu"}, "DoubleSeqBnConfig", QUARTER),
    "pfeiffer": Case("pfeiffer-adapter", SMALL, "SeqBnConfig", QUARTER | {"original_ln_before": False}),
    "parallel": Case("parallel-adapter", SMALL, "ParBnConfig", QUARTER | {"scaling": 1.0}, hooked=True),
    "parallel-attention": Case(
        "parallel-adapter",
        SMALL | {"beside": "attention"},
        "ParBnConfig",
        QUARTER | {"scaling": 1.0, "mh_adapter": True, "output_adapter": False},
        hooked=True,
    ),
    "scaled-parallel": Case("scaled-parallel-adapter", SMALL, "ParBnConfig", QUARTER, hooked=True),
    "compacter": Case("compacter", SMALL, "CompacterConfig", QUARTER),
    "compacter++": Case(
        "compacter", SMALL | {"targets": "down"}, "CompacterPlusPlusConfig", QUARTER | {"original_ln_before": False}
    ),
    "prefix": Case(
        "prefix-tuning",
        {"length": 5, "projection": 16},
        "PrefixTuningConfig",
        {"prefix_length": 5, "bottleneck_size": 16},
    ),
    "free-prefix": Case("p-tuning-v2", {"length": 5}, "PrefixTuningConfig", {"prefix_length": 5, "flat": True}),
    "pfeiffer-as-it-comes": Case("pfeiffer-adapter", SMALL, "SeqBnConfig", QUARTER),
    "parallel-as-it-comes": Case("scaled-parallel-adapter", SMALL, "ParBnConfig", QUARTER),
}
OTHER = {name for name in CASES if name.endswith("as-it-comes")}
"""Placements of adapters that are another function; were they the same, the settings above would be needless."""
SUBJECTS = [(name, architecture) for name in CASES for architecture in HOOKS]


@pytest.fixture(scope="module")
def logits(tmp_path_factory) -> dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]]:
    """Logits [2, 11, vocabulary] of every case: ours, theirs, and the base model's."""
    if not (ENVIRONMENT / ".ready").exists():
        pytest.skip("make parity builds it")
    root = tmp_path_factory.mktemp("adapterhub")
    ours = {subject: prepare(root / "-".join(subject), *subject) for subject in SUBJECTS}
    (root / "cases.json").write_text(json.dumps([told(*subject) for subject in SUBJECTS]), encoding="utf-8")
    script = Path(__file__).with_name("adapterhub_logits.py")
    # The paths of this environment would lead the other one to packages that it cannot use.
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [ENVIRONMENT / "bin" / "python", script, root]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    theirs = {subject: load_file(root / "-".join(subject) / "logits.safetensors")["logits"] for subject in SUBJECTS}
    return {subject: (ours[subject], theirs[subject], ours["base", subject[1]]) for subject in SUBJECTS}


def prepare(folder: Path, name: str, architecture: str) -> Tensor:
    """Write the tensors of a case and return our logits, with every trainable tensor moved by noise."""
    folder.mkdir()
    case, model = CASES[name], tiny(architecture)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (2, 11), generator=generator)
    save_file({key: value.clone() for key, value in model.named_parameters()}, folder / "base.safetensors")
    save_file({"ids": ids}, folder / "ids.safetensors")
    tensors: dict[str, Tensor] = {}
    if case.method is not None:
        adaptation = attach(model, [METHODS[case.method].from_options(case.options)])
        with torch.no_grad():
            for key, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
                tensors[neutral(key)] = parameter.detach().clone()
    save_file(tensors, folder / "adapter.safetensors")
    with torch.no_grad():
        return model(input_ids=ids).logits


def neutral(key: str) -> str:
    """Turn `0/<path>/<tensor>` into `<layer>/<place>/<tensor>`; what all layers share has the layer -1."""
    _, path, tensor = key.split("/")
    if path == "shared":
        return f"-1/shared/{tensor}"
    layer = next(part for part in path.split(".") if part.isdigit())
    place = "output" if "mlp" in path else "attention"
    return f"{layer}/{'prefix' if tensor in ('K', 'V') or tensor.startswith('outer') else place}/{tensor}"


def told(name: str, architecture: str) -> dict[str, Any]:
    """Return the case as the oracle reads it."""
    case = CASES[name]
    return {
        "name": f"{name}-{architecture}",
        "architecture": architecture,
        "settings": SETTINGS[architecture],
        "config": case.config,
        "options": case.theirs,
        "hooks": HOOKS[architecture] if case.hooked else None,
    }


@pytest.mark.parametrize(("name", "architecture"), [subject for subject in SUBJECTS if subject[0] not in OTHER])
def test_the_logits_are_those_of_adapterhub(logits, name, architecture):
    ours, theirs, base = logits[name, architecture]
    assert (ours - theirs).abs().max() <= 1e-5
    if name != "base":
        assert (ours - base).abs().max() > 0.1


@pytest.mark.parametrize(("name", "architecture"), [subject for subject in SUBJECTS if subject[0] in OTHER])
def test_placements_that_differ_are_another_function(logits, name, architecture):
    ours, theirs, base = logits[name, architecture]
    assert (theirs - base).abs().max() > 0.1
    assert (ours - theirs).abs().max() > 1e-2
