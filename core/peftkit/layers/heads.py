"""The heads of an attention module."""

from __future__ import annotations

from typing import Any, cast

from peftkit.layout import Site

NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")
"""What modules call the number of their heads."""


def query_heads(site: Site) -> int:
    """Return how many heads of queries an attention has."""
    module = cast(Any, site.module)
    named = (getattr(module, name, None) for name in NAMES)
    own = next((count for count in named if isinstance(count, int)), None)
    return own if own is not None else int(module.config.num_attention_heads)


def value_size(site: Site) -> int:
    """Return the size of the output of one head, which is that of a value."""
    heads = cast(Any, site.heads)
    return heads.values // heads.groups if heads.groups else site.parts["o"].inputs // query_heads(site)
