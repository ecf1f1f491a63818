"""Decoders of images and text, as far as text goes: what takes the images is neither read nor run."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from peftkit.families import FAMILIES, Family
from peftkit.families.decoder import OTHER_INPUTS
from peftkit.families.text_part import TextPart, whole_class

IMAGES = "pixel_values"
"""What a model of images and text is called with beside the text."""
BOTH_WAYS = (True, "all")
"""How a configuration says that a text token sees those behind it."""


class ImageText(Family):
    """A decoder of text whose checkpoint holds what takes images beside it."""

    loader = TextPart
    examples = "text"
    objective = "cross-entropy"

    def architectures(self) -> Collection[str]:
        """Return every architecture of transformers that answers images and text with text."""
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def refusal(self, config: Any) -> str | None:
        """Refuse what has no decoder of text beside a part of other inputs, for the reason that a decoder gives.

        So are decoders that see what comes after a token: which tokens are the prompt belongs to their input then.
        """
        if not _has_decoder(config):
            return FAMILIES["decoder"].refusal(config) or f"{config.model_type} takes text alone."
        if getattr(config.get_text_config(), "use_bidirectional_attention", None) in BOTH_WAYS:
            return f"{config.model_type} reads its prompts in both directions; only causal decoders work."
        return None

    def names(self, architecture: str) -> Mapping[str, Any]:
        """Return the names of the decoder inside."""
        return FAMILIES["decoder"].names(architecture)


FAMILIES.add("image-text", ImageText())


def _has_decoder(config: Any) -> bool:
    """Say whether a configuration is of a model that generates, with one of a decoder inside."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return False
    if all(getattr(config, key, None) is None for key in OTHER_INPUTS):
        return False
    text = config.get_text_config()
    if text is config or config.is_encoder_decoder or text.is_encoder_decoder:
        return False
    asked = inspect.signature(whole_class(config).forward).parameters
    does_without = IMAGES not in asked or asked[IMAGES].default is None
    return whole_class(config).can_generate() and does_without and "decoder_input_ids" not in asked
