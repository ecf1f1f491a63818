"""The words by which a recipe names modules: roles, groups of roles, module-name patterns, and ranges of layers."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from peftkit.errors import PeftkitError
from peftkit.layout.sites import Site

MIXER_ROLES = ("q", "k", "v", "o", "q_a", "q_b", "kv_a", "kv_b", "in", "out")
"""Those of maps in a mixer: of attention, of latent attention, and of a mixer without queries."""
GROUPS = {
    "attention": MIXER_ROLES,
    "mlp": ("gate", "up", "down"),
    "linear": (*MIXER_ROLES, "gate", "up", "down"),
}
"""The roles of each group, which also has the linear maps without a role in the same part of a layer."""
STACKS = "experts"
"""The role of stacks of the weights of experts, which no group has."""
LINEAR_ROLES = (*GROUPS["linear"], "head")


def parse_layers(layers: str | Sequence[int] | None) -> tuple[int, ...] | None:
    """Read a choice of layers: None for all, a list of indices, or ranges such as `0-3,8`."""
    if layers is None:
        return None
    if not isinstance(layers, str):
        return tuple(layers)
    chosen: list[int] = []
    for part in layers.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise PeftkitError(f"layers: '{layers}' is not a choice of layers: write indices and ranges such as 0-3,8.")
        chosen.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(chosen)


def matched(pattern: str, site: Site) -> bool:
    """Say whether a key of a per-module pattern (a role, a group or a module-name pattern) names the site."""
    named = names_module(pattern, site.path) or (site.stack is not None and names_module(pattern, site.id))
    return in_group(pattern, site) or site.role in GROUPS.get(pattern, (pattern,)) or named


def in_group(group: str, site: Site) -> bool:
    """Say whether a site is a linear map of a group; `linear` has all that lie in layers."""
    return group in GROUPS and site.group is not None and group in ("linear", site.group)


def names_module(pattern: str, name: str) -> bool:
    """Say whether a pattern is a glob of the whole module name or of its last parts."""
    return any(fnmatch.fnmatchcase(name, form) for form in (pattern, f"*.{pattern}"))
