"""Write the logits that AdapterHub's adapters computes; run by test_adapterhub.py in the environment `.venv-adapters`.

The folder argument holds `cases.json`, a list of cases, each with a subfolder of its `name`:
`base.safetensors` (weights of the model), `adapter.safetensors` (`<layer>/<place>/<tensor>` in peftkit's names),
`ids.safetensors`; `logits.safetensors` is written beside them. A case tells the `architecture` with its `settings`, the
`config` class of adapters with its `options`, and the `hooks`: None for the placement that adapters has for the
architecture, otherwise the fields of its AdapterModelInterface.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import adapters
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

NAME = "oracle"
Tensors = dict[str, Tensor]


def main(root: Path) -> None:
    """Write the logits of every case."""
    for case in json.loads((root / "cases.json").read_text(encoding="utf-8")):
        folder = root / case["name"]
        tensors = {kind: load_file(folder / f"{kind}.safetensors") for kind in ("base", "adapter", "ids")}
        model = build(case, tensors["base"])
        if case["config"] is not None:
            adapt(model, case)
            untouched = fill(model, tensors["adapter"])
            assert not untouched, f"{case['name']}: no value for {untouched}"
        with torch.no_grad():
            logits = model.eval()(input_ids=tensors["ids"]["ids"]).logits
        save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")


def build(case: dict[str, Any], base: Tensors) -> Any:
    """Build the model with the base weights; eager attention, which takes the prefix's mask as it stands."""
    config = AutoConfig.for_model(case["architecture"], **case["settings"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(base, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert not set(missing) - tied, missing
    assert not unexpected, unexpected
    return model


def adapt(model: Any, case: dict[str, Any]) -> None:
    """Add the case's adapter and switch it on."""
    hooks = case["hooks"]
    interface = None if hooks is None else adapters.AdapterModelInterface(adapter_methods=["bottleneck"], **hooks)
    adapters.init(model, interface=interface)
    model.add_adapter(NAME, config=getattr(adapters, case["config"])(**case["options"]))
    model.set_active_adapters(NAME)


def fill(model: Any, tensors: Tensors) -> set[str]:
    """Copy peftkit's tensors into the adapter; returns the names of its parameters that got no value."""
    base = model.base_model
    own = {name: parameter for name, parameter in model.named_parameters() if NAME in name.split(".")}
    names = {id(parameter): name for name, parameter in own.items()}
    done = set()
    for parameter, value in pairs(base, tensors):
        with torch.no_grad():
            assert parameter.shape == value.shape, (names[id(parameter)], parameter.shape, value.shape)
            parameter.copy_(value)
        done.add(names[id(parameter)])
    return set(own) - done


def pairs(base: Any, tensors: Tensors) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair the parameters of adapters with peftkit's tensors."""
    found: list[tuple[nn.Parameter, Tensor]] = []
    layers: list[Any] = [layer for _, layer in base.iter_layers()]
    prefixes: dict[int, Tensors] = {}
    for key, value in tensors.items():
        layer, place, tensor = key.split("/")
        if place == "shared" and tensor == "A":
            found.append((base.shared_parameters[NAME]["phm_rule"], value))
        elif place in ("shared", "prefix"):
            prefixes.setdefault(int(layer), {})[tensor] = value
        else:
            adapter = getattr(layers[int(layer)], f"{place}_adapters").adapters[NAME]
            found.append(bottleneck(adapter, tensor, value))
    return found + (prefix(base.prefix_tuning.prefix_tunings[NAME]["self_prefix"], prefixes) if prefixes else [])


def bottleneck(adapter: Any, tensor: str, value: Tensor) -> tuple[nn.Parameter, Tensor]:
    """Pair one tensor of a bottleneck: D b U c, or the factors of Kronecker products, which adapters keeps in 3D."""
    down, up = adapter.adapter_down[0], adapter.adapter_up
    match tensor:
        case "D" | "U":
            return (down if tensor == "D" else up).weight, value
        case "b" | "c":
            part = down if tensor == "b" else up
            return part.b if hasattr(part, "W_left") else part.bias, value
        case "s_down" | "s_up":
            return (down if tensor == "s_down" else up).W_left, value.unsqueeze(2)
        case _:
            return (down if tensor == "t_down" else up).W_right, value.unsqueeze(1)


def prefix(module: Any, layers: dict[int, Tensors]) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair a prefix: free keys and values [length, 2 L groups size], or the MLP whose last map makes them.

    Layer l's keys are the 2l-th and its values the (2l + 1)-th of the 2 L parts. What the layers share of the MLP
    comes as layer -1.
    """
    inner, outer = layers.pop(-1, None), [layers[layer] for layer in sorted(layers)]
    if inner is None:
        rows = torch.cat([part for tensors in outer for part in (tensors["K"], tensors["V"])], 1)
        return [(module.control_trans, rows.flatten())]
    first, _, last = module.control_trans
    return [
        (module.wte.weight, inner["E"]),
        (first.weight, inner["hidden.weight"]),
        (first.bias, inner["hidden.bias"]),
        (last.weight, torch.cat([tensors["outer.weight"] for tensors in outer])),
        (last.bias, torch.cat([tensors["outer.bias"] for tensors in outer])),
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
