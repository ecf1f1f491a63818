"""The layers of a model, their parts, and the sites in them: every linear map, whole parts, stacks of experts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from peftkit.families import family_of
from peftkit.layout.parts import LayerPart, is_gate, layers_of, leads_to_choice, parts_of, stacks_in
from peftkit.layout.roles import QUERIES, is_linear, roles_in
from peftkit.layout.sites import Rows, Site
from peftkit.layout.targets import GROUPS, STACKS, names_module
from peftkit.quantization.stack import PackedStack
from peftkit.quantization.weight import shape

READING, ENDING = ("q", "q_a", "k", "v", "in", "gate", "up"), ("o", "out", "down")
"""The roles of maps that read what their part of a layer does, and that make what it gives."""


class Layers:
    """The layers of a model with their roles, found by the names that its family gives them."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.config: Any = getattr(model, "config", None)
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        self.kind: str = getattr(text, "model_type", type(model).__name__)
        self.names: Mapping[str, Any] = family_of(self.config).names(self.kind)
        found = dict(model.named_modules())
        inside = tuple(f"{name}." for name, module in found.items() if isinstance(module, PackedStack))
        self.modules: dict[str, nn.Module] = {
            name: module
            for name, module in found.items()
            if ".seated" not in f".{name}" and not f"{name}.".startswith(inside)
        }
        self._hidden: dict[str, list[Site]] = {}

    @cached_property
    def blocks(self) -> list[str]:
        """The paths of the layers of the text decoder, lowest first."""
        decoder = self.model.get_decoder() if hasattr(self.model, "get_decoder") else None  # type: ignore[operator]
        inside = layers_of(self.modules, decoder) if isinstance(decoder, nn.Module) else []
        # Some families call a part of their head the decoder.
        return inside or layers_of(self.modules, self.model)

    @cached_property
    def parts(self) -> list[LayerPart]:
        """The mixers and feed-forward parts of the layers, those of one layer side by side."""
        return [part for layer, block in enumerate(self.blocks) for part in self._parts(layer, block)[0]]

    @cached_property
    def linears(self) -> list[Site]:
        """Every linear map of the layers but routers, the parts of fused modules one by one, then the head."""
        sites = [site for layer, block in enumerate(self.blocks) for site in self._block_sites(layer, block)]
        return sites + self._head_sites()

    @cached_property
    def stacks(self) -> list[Site]:
        """The stacks of experts' weights, [experts, out, in] or [experts, in, out], parameters of one module each."""
        sites = []
        for layer, block in enumerate(self.blocks):
            for path, module in self.modules.items():
                if not path.startswith(f"{block}."):
                    continue
                for key, count, inputs, outputs, turned, ends in stacks_in(
                    path.removeprefix(block), module, self.width
                ):
                    site = Site(path, module, inputs, outputs, STACKS, layer)
                    sites.append(replace(site, stack=key, experts=count, transposed=turned, ends=ends))
        return sites

    @property
    def width(self) -> int:
        """The width of the hidden states."""
        stated = getattr(self.config.get_text_config(), "hidden_size", None)
        return int(next(site.outputs for site in self.linears if site.role in ENDING) if stated is None else stated)

    def _parts(self, layer: int, block: str) -> tuple[list[LayerPart], list[str]]:
        parts, away = parts_of(self.modules, block, layer, self.names)
        # Text does not pass a layer that has other inputs in the place of a mixer.
        passed = not away or any(part.kind == "attention" for part in parts)
        return (parts, away) if passed else ([], [block])

    def _block_sites(self, layer: int, block: str) -> list[Site]:
        parts, away = self._parts(layer, block)
        left = [path for path in self._maps if _below(path, [block]) and not _below(path, away)]
        left = [path for path in left if not leads_to_choice(path.removeprefix(f"{block}."))]
        left = [path for path in left if not any(names_module(one, path) for one in self.names.get("uncalled", ()))]
        sites = [site for part in parts for site in self._part_sites(part, [p for p in left if _below(p, [part.path])])]
        outside = [path for path in left if not _below(path, [part.path for part in parts])]
        missing = [role for role in GROUPS["mlp"] if role not in {site.role for site in sites}]
        found = roles_in(block, outside, missing, self.names, self.modules, "none")
        sites += [self.site(one.path, one.role, layer, one.rows, "mlp") for one in found]
        known = {site.path for site in sites}
        return sites + [self.site(path, None, layer, group="layer") for path in outside if path not in known]

    def _part_sites(self, part: LayerPart, maps: list[str]) -> list[Site]:
        if part.kind == "mlp":
            maps = [path for path in maps if not (part.stacked and is_gate(path.removeprefix(f"{part.path}.")))]
            found = roles_in(
                part.path, maps, GROUPS["mlp"], self.names, self.modules, "every" if part.stacked else "highest"
            )
        else:
            found = roles_in(part.path, maps, QUERIES, self.names, self.modules)
            ends = ("o",) if found else ("in", "out")
            found += roles_in(part.path, maps, ends, self.names, self.modules, "highest" if found else "none")
        sites = [self.site(one.path, one.role, part.layer, one.rows, part.kind) for one in found]
        known = {site.path for site in sites}
        sites.sort(key=lambda site: GROUPS["linear"].index(str(site.role)))
        return sites + [self.site(path, None, part.layer, group=part.kind) for path in maps if path not in known]

    def wholes(self, role: str) -> list[Site]:
        """Return the sites of whole `attention` or `mlp` parts, or of each `block`; empty where there are none."""
        if role not in self._hidden:
            self._hidden[role] = self._find_hidden(role)
        return self._hidden[role]

    def _find_hidden(self, role: str) -> list[Site]:
        if role == "block":
            return [
                Site(path, self.modules[path], self.width, self.width, role, layer)
                for layer, path in enumerate(self.blocks)
            ]
        sites = []
        for layer in range(len(self.blocks)):
            parts = [part for part in self.parts if part.layer == layer and part.kind == role]
            sites += [self._whole(part) for part in parts] or self._spanned(role, layer)
        return sites

    def _whole(self, part: LayerPart) -> Site:
        inside = [site for site in self.linears if _below(site.path, [part.path]) and site.role is not None]
        inputs = next((site.inputs for site in inside if site.role in READING), self.width)
        outputs = next((site.outputs for site in inside if site.role in ENDING), self.width)
        return Site(part.path, self.modules[part.path], inputs, outputs, part.kind, part.layer)

    def _spanned(self, role: str, layer: int) -> list[Site]:
        """Return the feed-forward part of a layer that has its maps side by side, as a span from one to another."""
        maps = {site.role: site for site in self.linears if site.layer == layer and site.group == "mlp"}
        if role != "mlp" or not {"up", "down"} <= set(maps):
            return []
        first, last = maps["up"], maps["down"]
        return [Site(last.path, last.module, first.inputs, last.outputs, role, layer, entry=first.module)]

    def site(
        self, path: str, role: str | None, layer: int | None, rows: Rows | None = None, group: str | None = None
    ) -> Site:
        """Return the linear map at `path` as a site."""
        module = self.modules[path]
        sizes = shape(module)
        assert sizes is not None
        outputs = sizes[0] if rows is None else rows.length * rows.count
        return Site(path, module, sizes[1], outputs, role, layer, rows, group, tied=self.tied(module))

    def tied(self, module: nn.Module) -> bool:
        """Say whether another module has the weight too."""
        # Asked of the parameters alone: a packed layer would unpack its weight.
        weight = module._parameters.get("weight")
        return weight is not None and self._owners[id(weight)] > 1

    @cached_property
    def _owners(self) -> Counter[int]:
        return Counter(id(module._parameters.get("weight")) for module in self.modules.values())

    @cached_property
    def _maps(self) -> list[str]:
        """The paths of all linear maps."""
        return [name for name, module in self.modules.items() if is_linear(module)]

    def _head_sites(self) -> list[Site]:
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None  # type: ignore[operator]
        path = next((name for name, module in self.modules.items() if module is head), None) if head else None
        return [self.site(path, "head", None)] if path and shape(self.modules[path]) is not None else []

    def layer_of(self, path: str) -> int | None:
        """Return the layer in which a module or parameter lies; None outside of all."""
        return next((i for i, block in enumerate(self.blocks) if path.startswith(block + ".")), None)


def _below(path: str, homes: Sequence[str]) -> bool:
    return any(path.startswith(f"{home}.") for home in homes)
