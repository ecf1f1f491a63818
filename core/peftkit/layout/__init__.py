"""Where things are in a model: sites by role, and the words that name them."""

from __future__ import annotations

from peftkit.layout.layout import Layout
from peftkit.layout.sites import Rows, Site, own_parameters
from peftkit.layout.targets import GROUPS, LINEAR_ROLES, matched, parse_layers

__all__ = ["GROUPS", "LINEAR_ROLES", "Layout", "Rows", "Site", "matched", "own_parameters", "parse_layers"]
