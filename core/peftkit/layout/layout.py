"""Where things are in a model: the sites that targets name, and what else than layers it has."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from peftkit.errors import PeftkitError, nearest
from peftkit.families import family_of
from peftkit.families.image_text import unread
from peftkit.layout.attended import attention_sites, entered
from peftkit.layout.layers import Layers
from peftkit.layout.parts import leads_to_indexer
from peftkit.layout.roles import is_linear
from peftkit.layout.sites import Site, own_class
from peftkit.layout.targets import GROUPS, LINEAR_ROLES, STACKS, in_group, names_module
from peftkit.quantization.stack import is_packed
from peftkit.quantization.weight import shape


class Layout(Layers):
    """The layers of a model and their roles, and the sites that targets name."""

    @property
    def packed(self) -> list[str]:
        """The paths of linear layers and stacks that keep their weights in another form than as a parameter."""
        linears = [site.path for site in self.linears if is_packed(site.module)]
        return linears + [site.id for site in self.stacks if is_packed(site.held)]

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
        sites = [site for site in self.wholes(role) if layers is None or site.layer in set(layers)]
        if not sites:
            what = {"attention": "mixer", "mlp": "feed-forward part"}.get(role, "layer")
            where = "" if layers is None else f" in the layers {sorted(set(layers))}"
            raise PeftkitError(f"this {self.kind} model has no {what}{where}: choose another place.")
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
        return Site(path, module, module.num_embeddings, module.embedding_dim, "embedding", tied=self.tied(module))

    def body(self) -> nn.Module:
        """Return the innermost module that holds the layers, can be given token ids, and embeds them."""
        return self.bodies()[0]

    def bodies(self) -> list[nn.Module]:
        """List `body()` and, of a model of more than text, the innermost such module around that has all of it.

        It embeds the tokens itself and gives the text's part the embeddings, in most of these models.
        """
        parts = self.embedding().path.split(".")[:-1]
        paths = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        modules = [self.modules[path] for path in paths if self.blocks[0].startswith(f"{path}.")] + [self.model]
        able = [module for module in modules if "input_ids" in self._given(module)] or [self.model]
        configs = [getattr(module, "config", self.config) for module in able]
        whole = (module for module, config in zip(able, configs, strict=True) if config.get_text_config() is not config)
        around = next(whole, able[0])
        return [able[0]] if around is able[0] else [able[0], around]

    @staticmethod
    def _given(module: nn.Module) -> Iterable[str]:
        return inspect.signature(own_class(module).forward).parameters

    def other_tables(self) -> list[nn.Embedding]:
        """List the embeddings by token id beside the input embedding, such as those that each layer adds."""
        first: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        config = self.config.get_text_config().to_dict()
        sizes = {size for key, size in config.items() if key.startswith("vocab_size")}
        tables = [module for module in self.modules.values() if isinstance(module, nn.Embedding)]
        return [table for table in tables if table is not first and table.num_embeddings in sizes]

    def told_tokens(self) -> list[nn.Module]:
        """List the layers that are given token ids beside hidden states, such as those that choose experts by them."""
        blocks = [self.modules[path] for path in self.blocks]
        return [block for block in blocks if "input_ids" in self._given(block)]

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

    def roles(self) -> dict[str, int]:
        """Count the linear sites of each role."""
        counts: dict[str, int] = {}
        for role in (site.role for site in [*self.linears, *self.stacks] if site.role is not None):
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
        if target == STACKS:
            return self.stacks
        if target in LINEAR_ROLES:
            return [site for site in self.linears if site.role == target]
        known = {site.id: site for site in self.linears}
        named = [
            known.get(name) or self.site(name, None, self.layer_of(name))
            for name, module in self.modules.items()
            if name and names_module(target, name) and is_linear(module)
        ]
        return named or [site for site in self.stacks if names_module(target, site.id)]

    def _no_match(self, target: str) -> str:
        missing = [name for part in unread(self.model) for name in part.names if names_module(target, name)]
        if missing:
            return (
                f"the target '{target}' names {missing[0]}, which takes images or sound: text never reaches it, and "
                "it is not loaded. Choose targets inside the decoder of text."
            )
        roles = ", ".join(f"{role} ({count})" for role, count in self.roles().items())
        leaves = sorted({name.split(".")[-1] for name, module in self.modules.items() if shape(module) is not None})
        guess = nearest(target, [*GROUPS, *LINEAR_ROLES, STACKS, *leaves])
        hint = f" Did you mean '{guess}'?" if guess and guess != target else ""
        return (
            f"the target '{target}' matches no linear module of this {self.kind} model.{hint} "
            f"Roles here: {roles or 'none'}; groups: {', '.join(GROUPS)}; module names: {', '.join(leaves)}."
        )
