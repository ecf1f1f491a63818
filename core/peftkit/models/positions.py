"""Rotary positions beyond those that a model was trained on: the angles of each token are made smaller."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

from peftkit.errors import PeftkitError
from peftkit.recipe import ModelSection

SLIDING = "sliding_attention"
"""Layers of this type see no further than their window, whose positions are not beyond any."""


def scale(config: PretrainedConfig, section: ModelSection) -> None:
    """Have a configuration describe the model with `rope_factor` times as many positions, in place.

    `linear` is position interpolation (Chen et al. 2023, arXiv:2306.15595), `ntk` has the slowest angle of a head as
    slow as that and the fastest as it is, `yarn` is that of Peng et al. 2023, arXiv:2309.00071. Raises PeftkitError for
    a model without rotary positions, and for one whose positions are scaled already.
    """
    factor = section.rope_factor
    text: Any = config.get_text_config()
    rotary, longest = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not rotary or not longest:
        raise PeftkitError(
            f"model.rope_factor: {text.model_type} models have no rotary positions that could be scaled: leave it out."
        )
    by_type = all(isinstance(each, dict) for each in rotary.values())
    kinds = rotary if by_type else {"": rotary}
    scaled = {
        kind: each if kind == SLIDING else {**each, **_scaled(each, section, longest, _size(text, each))}
        for kind, each in kinds.items()
    }
    text.max_position_embeddings = math.floor(longest * factor)
    text.rope_parameters = scaled if by_type else scaled[""]


def _scaled(rotary: dict[str, Any], section: ModelSection, longest: int, size: int) -> dict[str, Any]:
    """Return what changes in the rotary parameters of one type of layers, of which `size` numbers are rotated."""
    found, kind, factor = rotary.get("rope_type", "default"), section.rope_type, section.rope_factor
    if found != "default":
        raise PeftkitError(
            f"model.rope_factor: the positions of {section.name} are scaled already ({found}, factor "
            f"{rotary.get('factor', 'unknown')}): leave it out."
        )
    if kind == "ntk":
        return {"rope_theta": rotary["rope_theta"] * factor ** (size / (size - 2))}
    more = {"original_max_position_embeddings": longest} if kind == "yarn" else {}
    return {"rope_type": kind, "factor": factor, **more}


def _size(text: Any, rotary: dict[str, Any]) -> int:
    """Return how many numbers of a query are rotated."""
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    latent = getattr(text, "qk_rope_head_dim", None)
    return latent or int(size * rotary.get("partial_rotary_factor", 1.0))
