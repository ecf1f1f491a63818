"""Where things are in a model: its blocks, the role of each module in them, and the sites that targets name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from peftkit.errors import PeftkitError, nearest
from peftkit.families import family_of
from peftkit.families.image_text import unread
from peftkit.layout.sites import Rows, Site
from peftkit.layout.targets import GROUPS, LINEAR_ROLES, names_module
from peftkit.quantization.weight import packed_shape, shape


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

    @cached_property
    def blocks(self) -> list[str]:
        """The paths of the layers, lowest first."""
        best: list[str] = []
        for name, module in self.modules.items():
            if isinstance(module, nn.ModuleList) and len(module) > len(best):
                paths = [f"{name}.{index}" for index in range(len(module))]
                if self._inside(paths[0], self.names["attention"]):
                    best = paths
        return best

    @cached_property
    def linears(self) -> list[Site]:
        """Every linear site that has a role: the parts of fused modules one by one, then the head."""
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
        self._check_layers(kept)
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
        """Return the site of a whole `attention`, `mlp` or `block` in each layer: hidden states in and out.

        Raises PeftkitError where the family has no such module, or `layers` leaves none.
        """
        self._check_layers(layers)
        sites = []
        for layer, block in enumerate(self.blocks):
            path = block if role == "block" else self._inside(block, self.names[role])
            if path is None:
                raise PeftkitError(f"{self.kind} models have no module of the role '{role}': choose another placement.")
            if layers is None or layer in set(layers):
                sites.append(Site(path, self.modules[path], self.width, self.width, role, layer))
        if not sites:
            raise PeftkitError(f"no layer with the role '{role}' is found in this {self.kind} model.")
        return sites

    def attention(self, layers: Iterable[int] | None = None) -> list[Site]:
        """Return the attention module of each layer, for adapters that act on its queries, keys and values.

        Raises PeftkitError for a family whose attention no adapter can enter.
        """
        if not getattr(self.model, "_supports_attention_backend", False):
            raise PeftkitError(
                f"{self.kind} models compute attention in a way of their own, which no adapter can enter: choose a "
                "method of another port, or another model."
            )
        parts: dict[int | None, dict[str, Site]] = {}
        for site in self.linears:
            if site.role is not None and site.role in GROUPS["attention"]:
                parts.setdefault(site.layer, {})[site.role] = site
        sites = [replace(site, parts=parts.get(site.layer, {})) for site in self.hidden("attention", layers)]
        if any(not {"q", "k", "v"} <= set(site.parts) for site in sites):
            raise PeftkitError(
                f"the attention of this {self.kind} model has no linear maps of the roles q, k and v, whose sizes are "
                "wanted: choose a method of another port."
            )
        return sites

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
        """Return the paths of the normalisation layers."""
        return [name for name, module in self.modules.items() if "norm" in type(module).__name__.lower()]

    @property
    def width(self) -> int:
        """The width of the hidden states."""
        return int(self.config.get_text_config().hidden_size)

    def roles(self) -> dict[str, int]:
        """Count the linear sites of each role."""
        counts: dict[str, int] = {}
        for site in self.linears:
            counts[site.role or ""] = counts.get(site.role or "", 0) + 1
        return counts

    def _check_layers(self, layers: Iterable[int] | None) -> None:
        if layers is not None and self.blocks and not set(layers) & set(range(len(self.blocks))):
            raise PeftkitError(
                f"layers {sorted(layers)} name no layer of the model: it has 0 to {len(self.blocks) - 1}."
            )

    def _named(self, target: str) -> list[Site]:
        roles = GROUPS.get(target, (target,) if target in LINEAR_ROLES else ())
        if roles:
            return [site for site in self.linears if site.role in roles]
        known = {site.id: site for site in self.linears}
        return [
            known.get(name) or self._site(name, None, self._layer_of(name))
            for name, module in self.modules.items()
            if name and names_module(target, name) and shape(module) is not None
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

    def _block_sites(self, layer: int, block: str) -> list[Site]:
        attention = self._inside(block, self.names["attention"])
        mlp = self._inside(block, self.names["mlp"])
        sites: list[Site] = []
        for roles, homes in ((GROUPS["attention"], (attention,)), (GROUPS["mlp"], (mlp, block))):
            fused = self._fused(homes, roles)
            for role in roles:
                if role in fused:
                    path, rows = fused[role]
                    sites.append(self._site(path, role, layer, rows))
                    continue
                path = next((p for home in homes if home and (p := self._inside(home, self.names[role]))), None)
                if path is not None and shape(self.modules[path]) is not None:
                    sites.append(self._site(path, role, layer))
        return sites

    def _fused(self, homes: Sequence[str | None], roles: Sequence[str]) -> dict[str, tuple[str, Rows]]:
        for name, (parts, order) in self.names["fused"].items():
            path = next((f"{home}.{name}" for home in homes if home and f"{home}.{name}" in self.modules), None)
            if path is not None and set(parts) <= set(roles):
                return {role: (path, rows) for role, rows in self._parts(path, parts, order).items()}
        return {}

    def _parts(self, path: str, parts: Sequence[str], order: str) -> dict[str, Rows]:
        total = (shape(self.modules[path]) or (0, 0))[0]
        config = self.config.get_text_config() if hasattr(self.config, "get_text_config") else self.config
        heads = config.num_attention_heads
        if order == "per head":
            size = total // (len(parts) * heads)
            return {role: Rows(i * size, size, len(parts) * size, heads) for i, role in enumerate(parts)}
        if "q" in parts:
            groups = getattr(config, "num_key_value_heads", None) or heads
            size = total // (heads + 2 * groups)
            lengths = [heads * size, groups * size, groups * size]
        else:
            lengths = [total // len(parts)] * len(parts)
        starts = [sum(lengths[:index]) for index in range(len(parts))]
        return {role: Rows(start, length, total) for role, start, length in zip(parts, starts, lengths, strict=True)}

    def _site(self, path: str, role: str | None, layer: int | None, rows: Rows | None = None) -> Site:
        module = self.modules[path]
        sizes = shape(module)
        assert sizes is not None
        outputs = sizes[0] if rows is None else rows.length * rows.count
        return Site(path, module, sizes[1], outputs, role, layer, rows, tied=self._tied(module))

    def _tied(self, module: nn.Module) -> bool:
        # Asked of the parameters alone: a packed layer would unpack its weight.
        weight = module._parameters.get("weight")
        return weight is not None and any(
            other is not module and other._parameters.get("weight") is weight for other in self.modules.values()
        )

    def _head_sites(self) -> list[Site]:
        head = self.model.get_output_embeddings() if hasattr(self.model, "get_output_embeddings") else None  # type: ignore[operator]
        path = next((name for name, module in self.modules.items() if module is head), None) if head else None
        return [self._site(path, "head", None)] if path and shape(self.modules[path]) is not None else []

    def _inside(self, home: str, names: Sequence[str]) -> str | None:
        return next((f"{home}.{name}" for name in names if f"{home}.{name}" in self.modules), None)

    def _layer_of(self, path: str) -> int | None:
        return next((i for i, block in enumerate(self.blocks) if path.startswith(block + ".")), None)
