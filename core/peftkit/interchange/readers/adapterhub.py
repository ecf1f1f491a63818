"""Folders of AdapterHub's `adapters` (Poth et al. 2023, arXiv:2311.11077): adapter_config.json and adapter.safetensors.

Keys and configurations are those that version 1.3.0 writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit import schemas
from peftkit.errors import PeftkitError
from peftkit.interchange.reader import READERS, FolderReader, ReadAdapter
from peftkit.interchange.readers.adapterhub_bottlenecks import bottlenecks
from peftkit.interchange.readers.adapterhub_maps import pairs, prefixes, prompts, scales
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.schemas import Size, Stored, Text

Part = Callable[[Mapping[str, Any], dict[str, Tensor], Layout, str], tuple[Method, dict[str, Tensor]]]
"""Takes the tensors of one configuration out of all; returns the method and its state."""
INTERFACE = "adapter_interface.json"


class HubPart(Stored):
    """What is taken of one configuration; which keys are there depends on the `architecture`."""

    architecture: str | None = None
    configs: list[dict[str, Any]] | None = None
    alpha: float | None = None
    r: Size | None = None
    dropout: float | None = None
    composition_mode: str | None = None
    attn_matrices: list[str] | None = None
    prefix_length: Size | None = None
    leave_out: list[int] | None = None
    scaling: float | str | None = None


class HubDescription(Stored):
    """What adapter_config.json says beside the configuration."""

    config: HubPart
    name: Text
    model_name: str | None = None
    model_type: str | None = None


def _low_rank(
    config: Mapping[str, Any], tensors: dict[str, Tensor], layout: Layout, place: str
) -> tuple[Method, dict[str, Tensor]]:
    """LoRA and (IA)^3 are one configuration there, told apart by how a pair is composed with the weight."""
    return (scales if config.get("composition_mode") == "scale" else pairs)(config, tensors, layout, place)


PARTS: dict[str | None, Part] = {
    None: bottlenecks,
    "lora": _low_rank,
    "prefix_tuning": prefixes,
    "prompt_tuning": prompts,
}
"""By the `architecture` of a configuration."""


class AdapterHub(FolderReader):
    """What `save_adapter` of that library writes; a prediction head beside it (`model_head`) is the model's own.

    Of a causal language model that head is the frozen one, and is left alone.
    """

    library = "AdapterHub's adapters"
    configuration, tensors, pickled = "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin"

    def claims(self, folder: Path) -> bool:
        path = folder / self.configuration
        return path.is_file() and {"config", "model_class"} <= set(schemas.read(path, Stored))

    def base(self, folder: Path) -> tuple[str | None, str | None]:
        return schemas.read(folder / self.configuration, HubDescription).get("model_name") or None, None

    def read(self, folder: Path, layout: Layout) -> ReadAdapter:
        self.check_readable(folder)
        place = str(folder / self.configuration)
        described = schemas.read(folder / self.configuration, HubDescription)
        config, name = described["config"], described["name"]
        told = described.get("model_type")
        if told not in (None, layout.kind):
            raise PeftkitError(f"{place}: the adapter is for a {told} model, and this is a {layout.kind} model.")
        if (folder / INTERFACE).is_file():
            raise PeftkitError(
                f"{folder / INTERFACE}: the adapter was placed by an interface, and only the places of models that "
                "adapters itself knows are read."
            )
        left = _named(self.values(folder), name)
        union = config.get("architecture") == "union"
        methods: list[Method] = []
        state: dict[str, Tensor] = {}
        for each in config.get("configs") or () if union else (config,):
            schemas.check(HubPart, each, f"{place}: config")
            kind = each.get("architecture")
            if kind not in PARTS:
                known = ", ".join(sorted(str(one) for one in PARTS if one))
                raise PeftkitError(f"{place}: architecture is {kind!r}; read are bottlenecks, {known} and unions.")
            method, own = PARTS[kind](each, left, layout, place)
            state |= {f"{len(methods)}/{key}": tensor for key, tensor in own.items()}
            methods.append(method)
        if left:
            raise PeftkitError(f"{folder / self.tensors}: the tensor '{min(left)}' is part of nothing that is read.")
        # Rows stand in front of all tokens there, of which the tokenizer may put in a first one.
        return ReadAdapter(methods, state, in_front=True)


def _named(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors without the adapter's name, and without what each layer holds again of a shared prefix."""
    once = {key: tensor for key, tensor in tensors.items() if ".prefix_tuning.pool." not in key}
    return {f".{key}.".replace(f".{name}.", ".", 1).strip("."): tensor for key, tensor in once.items()}


READERS.add("adapterhub", AdapterHub())
