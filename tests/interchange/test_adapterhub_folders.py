"""Folders of AdapterHub's adapters 1.3.0 give the logits that its formulas give, or are refused with the reason.

The keys, shapes and configurations are those that this version wrote for Llama and GPT-2 under transformers 4.57, whose
logits these formulas equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from folders import (
    BLOCKS,
    BOTTLENECK,
    ENDS,
    LAYERS,
    LOW_RANK,
    PREFIX,
    SINGLE,
    SIZE,
    WIDTH,
    Noise,
    added,
    behind,
    bottleneck,
    reading,
    write_hub,
)
from torch import Tensor

from peftkit.adaptation import attach
from peftkit.errors import PeftkitError
from peftkit.interchange import READERS
from peftkit.layout import Layout
from peftkit.models.tiny import tiny

IDS = torch.arange(3, 40)[None]
NAMES = {"D": "adapter_down.0.weight", "b": "adapter_down.0.bias", "U": "adapter_up.weight", "c": "adapter_up.bias"}


def read(folder: Path, architecture: str) -> tuple[list[str], Tensor]:
    """Return the methods that a folder is read as, and the logits with it."""
    model = tiny(architecture)
    found = READERS["adapterhub"].read(folder, Layout(model))
    adaptation = attach(model, found.methods)
    adaptation.load_state(found.tensors)
    with torch.no_grad():
        return [method.name for method in found.methods], model(IDS).logits


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def check(folder: Path, architecture: str, reference: Any, *names: str) -> None:
    """Hold a folder to a model with hooks, whose logits are far from the base's."""
    read_as, ours = read(folder, architecture)
    assert read_as == list(names)
    expected = logits(reference)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (expected - logits(tiny(architecture))).abs().max() > 0.05


@pytest.mark.parametrize("architecture", ENDS)
@pytest.mark.parametrize("scaling", [1.0, 2.5, "learned", "channel"])
def test_double_bottlenecks_are_serial_adapters(architecture: str, scaling: Any, tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny(architecture), {}
    for layer in range(LAYERS):
        for place, end in zip(("attention_adapters", "output_adapters"), ENDS[architecture], strict=True):
            own, stem = bottleneck(noise), f"{BLOCKS[architecture]}.{layer}.{place}.adapters.task"
            tensors |= {f"{stem}.{NAMES[key]}": value for key, value in own.items()}
            factor = torch.tensor(scaling) if isinstance(scaling, float) else 1 + noise(1)
            factor = 1 + noise(WIDTH) if scaling == "channel" else factor
            if not isinstance(scaling, float):
                tensors[f"{stem}.scaling"] = factor
            module = model.get_submodule(f"{BLOCKS[architecture]}.{layer}.{end}")
            behind(module, lambda o, own=own, s=factor: o + s * added(o, own, F.silu))
    folder = write_hub(tmp_path / "a", {**BOTTLENECK, "scaling": scaling}, tensors, architecture)
    check(folder, architecture, model, "serial-adapter")


@pytest.mark.parametrize("architecture", ENDS)
@pytest.mark.parametrize("reads", ["stream", "sublayer"])
def test_the_single_bottleneck_reads_the_residual_stream_where_it_says_so(
    architecture: str, reads: str, tmp_path: Path
) -> None:
    noise, model, tensors = Noise(), tiny(architecture), {}
    for layer in range(LAYERS):
        own, block = bottleneck(noise), f"{BLOCKS[architecture]}.{layer}"
        stem = f"{block}.output_adapters.adapters.task"
        tensors |= {f"{stem}.{NAMES[key]}": value for key, value in own.items()}
        path = block if reads == "stream" else f"{block}.{ENDS[architecture][1]}"
        behind(model.get_submodule(path), lambda h, own=own: h + added(h, own, F.relu))
    config = {**SINGLE, "original_ln_before": reads == "stream"}
    folder = write_hub(tmp_path / "a", config, tensors, architecture)
    check(folder, architecture, model, "pfeiffer-adapter" if reads == "stream" else "serial-adapter")


@pytest.mark.parametrize("stream", [False, True])
def test_compacter_is_read_as_it_is_or_multiplied_out(stream: bool, tmp_path: Path) -> None:
    noise, model, rule = Noise(), tiny("llama"), Noise()(4, 4, 4) * 5
    tensors = {"model.shared_parameters.task.phm_rule": rule}
    places = ["output_adapters"] if stream else ["attention_adapters", "output_adapters"]

    def product(left: Tensor, right: Tensor) -> Tensor:
        return sum(torch.kron(rule[i], left[i] @ right[i]) for i in range(4))  # type: ignore[return-value]

    for layer in range(LAYERS):
        for place in places:
            stem, own = f"model.layers.{layer}.{place}.adapters.task", bottleneck(noise)
            factors = {side: (noise(4, n // 4, 1) * 4, noise(4, 1, m // 4) * 4) for side, n, m in SIDES}
            for side, module, bias in (("down", "adapter_down.0", "b"), ("up", "adapter_up", "c")):
                names = {"W_left": factors[side][0], "W_right": factors[side][1], "b": own[bias]}
                tensors |= {f"{stem}.{module}.{name}": value for name, value in names.items()}
            own |= {"D": product(*factors["down"]).T, "U": product(*factors["up"]).T}
            end = ENDS["llama"][1 if place == "output_adapters" else 0]
            path = f"model.layers.{layer}" + ("" if stream else f".{end}")
            behind(model.get_submodule(path), lambda h, own=own: h + added(h, own, F.gelu))
    config = {**(SINGLE if stream else BOTTLENECK), "phm_layer": True, "non_linearity": "gelu"}
    folder = write_hub(tmp_path / "a", config, tensors)
    check(folder, "llama", model, "pfeiffer-adapter" if stream else "compacter")


SIDES = (("down", WIDTH, SIZE), ("up", SIZE, WIDTH))


def test_pairs_are_lora(tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("llama"), {}
    for layer in range(LAYERS):
        for name, outputs in (("self_attn.q_proj", 32), ("self_attn.v_proj", 16)):
            path, A, B = f"model.layers.{layer}.{name}", noise(4, 32), noise(outputs, 4)
            tensors |= {f"{path}.loras.task.lora_A": A, f"{path}.loras.task.lora_B": B}
            reading(model.get_submodule(path), lambda x, y, A=A, B=B: y + 9 / 4 * x @ A.T @ B.T)
    check(write_hub(tmp_path / "a", LOW_RANK, tensors), "llama", model, "lora")


def test_the_pairs_of_queries_and_values_in_one_map_are_one_pair(tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("gpt2"), {}
    for layer in range(LAYERS):
        path, A, B = f"transformer.h.{layer}.attn.c_attn", noise(8, 32), noise(64, 4)
        tensors |= {f"{path}.loras.task.lora_A": A, f"{path}.loras.task.lora_B": B}

        def both(x: Tensor, y: Tensor, A: Tensor = A, B: Tensor = B) -> Tensor:
            q, v = x @ A[:4].T @ B[:32].T, x @ A[4:].T @ B[32:].T
            return y + 9 / 4 * torch.cat([q, torch.zeros_like(q), v], -1)

        reading(model.get_submodule(path), both)
    check(write_hub(tmp_path / "a", LOW_RANK, tensors, "gpt2"), "gpt2", model, "lora")


@pytest.mark.parametrize("architecture", ENDS)
def test_scales_of_outputs_are_ia3(architecture: str, tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny(architecture), {}
    config = {**LOW_RANK, "composition_mode": "scale", "attn_matrices": ["k", "v"], "r": 1, "alpha": 1}
    for layer in range(LAYERS):
        block = f"{BLOCKS[architecture]}.{layer}"
        own = {"mlp.down_proj": 1 + noise(32), "self_attn.k_proj": 1 + noise(16), "self_attn.v_proj": 1 + noise(16)}
        if architecture == "gpt2":
            own = {"mlp.c_fc": 1 + noise(128), "attn.c_attn": 1 + noise(64)}
        for name, scale in own.items():
            tensors[f"{block}.{name}.loras.task.lora_B"] = scale[:, None]
            whole = torch.cat([torch.ones(32), scale]) if name == "attn.c_attn" else scale
            behind(model.get_submodule(f"{block}.{name}"), lambda y, whole=whole: y * whole)
    check(write_hub(tmp_path / "a", config, tensors, architecture), architecture, model, "ia3")


@pytest.mark.parametrize("flat", [False, True])
def test_prefixes_are_keys_and_values_of_each_layer(flat: bool, tmp_path: Path) -> None:
    """The cache of transformers holds the prefix, and the positions of the text are those without it."""
    from transformers import DynamicCache

    noise, stem = Noise(), "model.prefix_tuning.prefix_tunings.task.self_prefix"
    parts = {"wte.weight": noise(5, 32) * 9, "control_trans.0.weight": noise(16, 32), "control_trans.0.bias": noise(16)}
    parts |= {"control_trans.2.weight": noise(64, 16) * 9, "control_trans.2.bias": noise(64)}
    inner = torch.tanh(parts["wte.weight"] @ parts["control_trans.0.weight"].T + parts["control_trans.0.bias"])
    whole = inner @ parts["control_trans.2.weight"].T + parts["control_trans.2.bias"]
    tensors = {f"{stem}.{key}": value for key, value in parts.items()}
    tensors = {f"{stem}.control_trans": whole.flatten()} if flat else tensors
    again = {
        key.replace("model.", "model.layers.0.self_attn.").replace("_tuning.p", "_tuning.pool.p", 1) for key in tensors
    }
    tensors |= {key: torch.zeros(1) for key in again}
    folder = write_hub(tmp_path / "a", {**PREFIX, "flat": flat}, tensors)
    model, cache = tiny("llama"), DynamicCache()
    for layer, pair in enumerate(whole.view(5, 2 * LAYERS, 2, 8).permute(1, 2, 0, 3)[:, None].split(2)):
        cache.update(pair[0], pair[1], layer)
    with torch.no_grad():
        expected = model(IDS, past_key_values=cache, position_ids=torch.arange(IDS.shape[1])[None]).logits
    names, ours = read(folder, "llama")
    assert names == ["p-tuning-v2"]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (expected - logits(tiny("llama"))).abs().max() > 0.05


def test_a_union_is_a_list_of_methods(tmp_path: Path) -> None:
    noise, model, tensors = Noise(), tiny("llama"), {}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        path, A, B, own = f"{block}.self_attn.q_proj", noise(4, 32), noise(32, 4), bottleneck(noise)
        tensors |= {f"{path}.loras.task.lora_A": A, f"{path}.loras.task.lora_B": B}
        tensors |= {f"{block}.output_adapters.adapters.task.{NAMES[key]}": value for key, value in own.items()}
        reading(model.get_submodule(path), lambda x, y, A=A, B=B: y + 9 / 4 * x @ A.T @ B.T)
        behind(model.get_submodule(block), lambda h, own=own: h + added(h, own, F.relu))
    config = {"architecture": "union", "configs": [LOW_RANK, SINGLE]}
    check(write_hub(tmp_path / "a", config, tensors), "llama", model, "lora", "pfeiffer-adapter")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({**SINGLE, "is_parallel": True}, "is_parallel is True, which reads the residual stream in front of the norm"),
        ({**SINGLE, "use_gating": True}, "use_gating is True, which has a gate that is averaged over all tokens"),
        ({**SINGLE, "ln_before": True}, "ln_before is True, which adds a norm"),
        ({**SINGLE, "ln_after": True}, "ln_after is True, which adds a norm"),
        ({**SINGLE, "inv_adapter": "nice"}, "inv_adapter is 'nice', which adds invertible adapters"),
        ({**SINGLE, "mh_adapter": True}, "original_ln_before is True with mh_adapter"),
        ({**SINGLE, "residual_before_ln": False}, "residual_before_ln is False"),
        ({**SINGLE, "original_ln_after": False}, "original_ln_after is False, which leaves the residual out"),
        ({**SINGLE, "non_linearity": "leakyrelu"}, "non_linearity is 'leakyrelu'"),
        ({**SINGLE, "phm_layer": True, "phm_rank": 2}, "phm_rank is 2"),
        ({**SINGLE, "novelty": 3}, "novelty is set"),
        ({**LOW_RANK, "use_gating": True}, "use_gating is True"),
        ({**LOW_RANK, "use_dora": True}, "use_dora is True, which has magnitudes"),
        ({**PREFIX, "use_gating": True}, "use_gating is True"),
        ({"architecture": "reft"}, "architecture is 'reft'; read are bottlenecks, lora"),
    ],
)
def test_what_would_compute_something_else_is_refused(config: Any, told: str, tmp_path: Path) -> None:
    stem = "model.layers.0.output_adapters.adapters.task"
    tensors = {f"{stem}.{NAMES[key]}": value for key, value in bottleneck(Noise()).items()}
    with pytest.raises(PeftkitError, match=told):
        read(write_hub(tmp_path / "a", config, tensors), "llama")


def test_another_base_and_stray_tensors_are_refused(tmp_path: Path) -> None:
    stem = "model.layers.{}.output_adapters.adapters.task"
    tensors = {f"{stem.format(0)}.{NAMES[key]}": value for key, value in bottleneck(Noise()).items()}
    folder = write_hub(tmp_path / "a", SINGLE, tensors)
    with pytest.raises(PeftkitError, match="for a llama model, and this is a gpt2 model"):
        read(folder, "gpt2")
    folder = write_hub(tmp_path / "b", SINGLE, {f"{stem.format(7)}.{NAMES['D']}": torch.zeros(8, 32)})
    with pytest.raises(PeftkitError, match=r"no layer 'model\.layers\.7' in this llama model"):
        read(folder, "llama")
    folder = write_hub(tmp_path / "c", SINGLE, {**tensors, "model.layers.0.novelty.task.weight": torch.zeros(1)})
    with pytest.raises(PeftkitError, match=r"'model\.layers\.0\.novelty\.weight' is part of nothing"):
        read(folder, "llama")
    (folder / "adapter_interface.json").write_text("{}")
    with pytest.raises(PeftkitError, match=r"adapter_interface\.json: the adapter was placed by an interface"):
        read(folder, "llama")


def test_a_pickle_is_refused_with_the_lines_that_write_its_tensors(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "a", SINGLE, {"x": torch.zeros(1)})
    (folder / "adapter.safetensors").unlink()
    with pytest.raises(PeftkitError, match=r"there is no adapter\.safetensors in it"):
        read(folder, "llama")
    stem = "model.layers.0.output_adapters.adapters.task"
    tensors = {f"{stem}.{NAMES[key]}": value for key, value in bottleneck(Noise()).items()}
    torch.save(tensors, folder / "pytorch_adapter.bin")
    with pytest.raises(PeftkitError, match=r"pytorch_adapter\.bin is a pickle.*\n") as refused:
        read(folder, "llama")
    lines = "\n".join(line.strip() for line in str(refused.value).splitlines()[1:])
    exec(lines, {})
    assert read(folder, "llama")[0] == ["pfeiffer-adapter"]
