"""Where things are in a model: sites by role, and the words that name them."""

from __future__ import annotations

from peftkit.layout.layout import Layout
from peftkit.layout.parts import LayerPart
from peftkit.layout.sites import Rows, Site, own_parameters
from peftkit.layout.standing import Standing, left_dense, left_out, otherwise, standing
from peftkit.layout.targets import GROUPS, LINEAR_ROLES, matched, names_module, parse_layers

__all__ = [
    "GROUPS",
    "LINEAR_ROLES",
    "LayerPart",
    "Layout",
    "Rows",
    "Site",
    "Standing",
    "left_dense",
    "left_out",
    "matched",
    "names_module",
    "otherwise",
    "own_parameters",
    "parse_layers",
    "standing",
]
