"""Where things are in a model: its blocks, the role of each module in them, and the sites that targets name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from peftkit.errors import PeftkitError, nearest
from peftkit.families import family_of
from peftkit.families.image_text import unread
from peftkit.layout.attended import attention_sites, entered
from peftkit.layout.parts import LayerPart, is_gate, layers_of, leads_to_choice, leads_to_indexer, parts_of
from peftkit.layout.roles import QUERIES, is_linear, roles_in
from peftkit.layout.sites import Rows, Site
from peftkit.layout.targets import GROUPS, LINEAR_ROLES, in_group, names_module
from peftkit.quantization.weight import packed_shape, shape

READING, ENDING = ("q", "q_a", "k", "v", "in", "gate", "up"), ("o", "out", "down")
"""The roles of maps that read what their part of a layer does, and that make what it gives."""


class Layout:
    """The blocks and roles of a model, found by the names that its family gives them."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.config: Any = getattr(model, "config", None)
        text = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        self.kind: str = getattr(text, "model_type", type(model).__name__)
        self.names: Mapping[str, Any] = family_of(self.config).names(self.kind)
        self.modules: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if ".seated" not in f".{name}"
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

    @property
    def packed(self) -> list[str]:
        """The paths of the linear layers that keep their weight in another form than as a parameter."""
        return [site.path for site in self.linears if packed_shape(site.module) is not None]

    def resolve(
        self, targets: str | Sequence[str], layers: Iterable[int] | None = None, exclude: Sequence[str] = ()
    ) -> list[Site]:
        """Return the linear sites that the targets name: roles, groups of roles, or module-name patterns.

        A pattern is a glob of a whole module name or of its last parts (`q_proj`, `layers.*.mlp.*`). `layers` keeps
        these layers only (modules outside the blocks go). Raises PeftkitError for a target that matches nothing, with
        what there is.
        """
        wanted = (targets,) if isinstance(targets, str) else tuple(targets)
        kept = None if layers is None else set(layers)
        self.check_layers(kept)
        chosen: dict[str, Site] = {}
        for target in wanted:
            sites = self._named(target)
            if not sites:
                raise PeftkitError(self._no_match(target))
            chosen.update((site.id, site) for site in sites)
        out = {site.id for pattern in exclude for site in self._named(pattern)}
        sites = [s for s in chosen.values() if s.id not in out and (kept is None or s.layer in kept)]
        if not sites:
            raise PeftkitError(f"targets {list(wanted)} match modules, but layers and exclude leave none of them.")
        whole = {site.path for site in sites if site.rows is None}
        twice = [site.id for site in sites if site.rows is not None and site.path in whole]
        if twice:
            raise PeftkitError(
                f"targets {list(wanted)} name {twice[0]} both as a whole module and by a part: keep one."
            )
        return sites

    def hidden(self, role: str, layers: Iterable[int] | None = None) -> list[Site]:
        """Return the sites of whole `attention` or `mlp` parts or of each `block`: hidden states in and out.

        A layer has as many as it has mixers (`attention`) or feed-forward parts, or none. Raises PeftkitError where no
        layer has one, or `layers` leaves none.
        """
        self.check_layers(layers)
        sites = [site for site in self._hidden_sites(role) if layers is None or site.layer in set(layers)]
        if not sites:
            where = "" if layers is None else f" in the layers {sorted(set(layers))}"
            raise PeftkitError(f"{self.kind} models have no module of the role '{role}'{where}: choose another place.")
        return sites

    def attention(self, layers: Iterable[int] | None = None) -> list[Site]:
        """Return the attention modules of the layers that have one, for adapters that act on its keys and values.

        Raises PeftkitError where there is none that an adapter can enter.
        """
        self.check_layers(layers)
        return entered(self.kind, self._attentions, layers)

    @cached_property
    def _attentions(self) -> list[Site]:
        return attention_sites(self, family_of(self.config))

    def inside(self, site: Site) -> dict[str, Site]:
        """Return the linear sites inside a part of a layer by their roles, the first of each role."""
        inside = [one for one in self.linears if one.role is not None and one.path.startswith(f"{site.path}.")]
        return {str(one.role): one for one in reversed(inside)}

    def embedding(self) -> Site:
        """Return the input embedding: `inputs` is its number of rows, `outputs` its width."""
        module: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        path = next(name for name, other in self.modules.items() if other is module)
        return Site(path, module, module.num_embeddings, module.embedding_dim, "embedding", tied=self._tied(module))

    def other_tables(self) -> list[nn.Embedding]:
        """List the embeddings by token id beside the input embedding, such as those that each layer adds."""
        first: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        config = self.config.get_text_config().to_dict()
        sizes = {size for key, size in config.items() if key.startswith("vocab_size")}
        tables = [module for module in self.modules.values() if isinstance(module, nn.Embedding)]
        return [table for table in tables if table is not first and table.num_embeddings in sizes]

    def norms(self) -> list[str]:
        """Return the paths of the normalisation layers, but those that no gradient reaches."""
        norms = [name for name, module in self.modules.items() if "norm" in type(module).__name__.lower()]
        return [name for name in norms if self.reached(name)]

    def reached(self, path: str) -> bool:
        """Say whether a gradient reaches a module or parameter of a layer.

        An indexer's choice of keys gives none, nor does what other inputs than text pass.
        """
        away = tuple(f".{name}" for name in self.names.get("elsewhere", ()))
        inside = self.layer_of(path) is not None
        return not inside or not (leads_to_indexer(path) or any(name in path for name in away))

    @property
    def width(self) -> int:
        """The width of the hidden states."""
        stated = getattr(self.config.get_text_config(), "hidden_size", None)
        ends = (site.outputs for site in self.linears if site.role in ENDING)
        return int(next(ends, self.embedding().outputs) if stated is None else stated)

    def roles(self) -> dict[str, int]:
        """Count the linear sites of each role."""
        counts: dict[str, int] = {}
        for role in (site.role for site in self.linears if site.role is not None):
            counts[role] = counts.get(role, 0) + 1
        return counts

    def check_layers(self, layers: Iterable[int] | None) -> None:
        """Raise PeftkitError where none of these layers is there."""
        if layers is not None and self.blocks and not set(layers) & set(range(len(self.blocks))):
            raise PeftkitError(
                f"layers {sorted(layers)} name no layer of the model: it has 0 to {len(self.blocks) - 1}."
            )

    def _named(self, target: str) -> list[Site]:
        if target in GROUPS:
            return [site for site in self.linears if in_group(target, site)]
        if target in LINEAR_ROLES:
            return [site for site in self.linears if site.role == target]
        known = {site.id: site for site in self.linears}
        return [
            known.get(name) or self._site(name, None, self.layer_of(name))
            for name, module in self.modules.items()
            if name and names_module(target, name) and is_linear(module, type(self.model))
        ]

    def _no_match(self, target: str) -> str:
        missing = [name for part in unread(self.model) for name in part.names if names_module(target, name)]
        if missing:
            return (
                f"the target '{target}' names {missing[0]}, which takes images or sound: text never reaches it, and "
                "it is not loaded. Choose targets inside the decoder of text."
            )
        roles = ", ".join(f"{role} ({count})" for role, count in self.roles().items())
        leaves = sorted({name.split(".")[-1] for name, module in self.modules.items() if shape(module) is not None})
        guess = nearest(target, [*GROUPS, *LINEAR_ROLES, *leaves])
        hint = f" Did you mean '{guess}'?" if guess and guess != target else ""
        return (
            f"the target '{target}' matches no linear module of this {self.kind} model.{hint} "
            f"Roles here: {roles or 'none'}; groups: {', '.join(GROUPS)}; module names: {', '.join(leaves)}."
        )

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
        sites += [self._site(one.path, one.role, layer, one.rows, "mlp") for one in found]
        known = {site.path for site in sites}
        return sites + [self._site(path, None, layer, group="layer") for path in outside if path not in known]

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
        sites = [self._site(one.path, one.role, part.layer, one.rows, part.kind) for one in found]
        known = {site.path for site in sites}
        sites.sort(key=lambda site: GROUPS["linear"].index(str(site.role)))
        return sites + [self._site(path, None, part.layer, group=part.kind) for path in maps if path not in known]

    def _hidden_sites(self, role: str) -> list[Site]:
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

    def _site(
        self, path: str, role: str | None, layer: int | None, rows: Rows | None = None, group: str | None = None
    ) -> Site:
        module = self.modules[path]
        sizes = shape(module)
        assert sizes is not None
        outputs = sizes[0] if rows is None else rows.length * rows.count
        return Site(path, module, sizes[1], outputs, role, layer, rows, group, tied=self._tied(module))

    def _tied(self, module: nn.Module) -> bool:
        # Asked of the parameters alone: a packed layer would unpack its weight.
        weight = module._parameters.get("weight")
        return weight is not None and self._owners[id(weight)] > 1

    @cached_property
    def _owners(self) -> Counter[int]:
        return Counter(id(module._parameters.get("weight")) for module in self.modules.values())

    @cached_property
    def _maps(self) -> list[str]:
        """The paths of all linear maps."""
        return [name for name, module in self.modules.items() if is_linear(module, type(self.model))]

    def _head_sites(self) -> list[Site]:
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None  # type: ignore[operator]
        path = next((name for name, module in self.modules.items() if module is head), None) if head else None
        return [self._site(path, "head", None)] if path and shape(self.modules[path]) is not None else []

    def layer_of(self, path: str) -> int | None:
        """Return the layer in which a module or parameter lies; None outside of all."""
        return next((i for i, block in enumerate(self.blocks) if path.startswith(block + ".")), None)


def _below(path: str, homes: Sequence[str]) -> bool:
    return any(path.startswith(f"{home}.") for home in homes)
