"""The words by which a recipe names modules: roles, groups of roles, module-name patterns, and ranges of layers."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from peftkit.errors import PeftkitError
from peftkit.layout.sites import Site

GROUPS = {
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "linear": ("q", "k", "v", "o", "gate", "up", "down"),
}
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
    return site.role in GROUPS.get(pattern, (pattern,)) or names_module(pattern, site.path)


def names_module(pattern: str, name: str) -> bool:
    """Say whether a pattern is a glob of the whole module name or of its last parts."""
    return any(fnmatch.fnmatchcase(name, form) for form in (pattern, f"*.{pattern}"))
