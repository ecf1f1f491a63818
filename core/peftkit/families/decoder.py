"""Decoders of text: causal language models, which generate, and those inside of models that take images too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import yaml
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from peftkit import resources
from peftkit.families import FAMILIES, Family
from peftkit.families.image_text import AutoModelForCausalLM, has_decoder

OTHER_INPUTS = ("vision_config", "audio_config")
BOTH_WAYS = (True, "all")
"""How a configuration says that a text token sees those behind it."""


class Decoder(Family):
    """A stack of layers with causal attention and a head over the vocabulary."""

    loader = AutoModelForCausalLM
    examples = "text"
    objective = "cross-entropy"

    def architectures(self) -> Collection[str]:
        """Return every architecture of transformers with a causal language model, or that answers images and text."""
        return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def refusal(self, config: Any) -> str | None:
        """Refuse encoder-decoders, encoders, and models that take images or sound without a decoder of text inside.

        So are those that read a prompt in both directions: which tokens it is belongs to their input.
        """
        architecture = getattr(config, "model_type", None)
        if getattr(config, "is_encoder_decoder", False):
            return f"{architecture} is an encoder-decoder; only decoders (causal language models) work."
        if any(getattr(config, key, None) is not None for key in OTHER_INPUTS):
            if not has_decoder(config):
                return f"{architecture} takes images or sound; decoders of text work, and those of image-text models."
            if getattr(config.get_text_config(), "use_bidirectional_attention", None) in BOTH_WAYS:
                return f"{architecture} reads its prompts in both directions; only causal decoders work."
            return None
        masked = architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
        if masked or architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            return (
                f"{architecture} is not a decoder (no causal language model of it is known to transformers). "
                "Choose a model that generates text, such as llama, qwen3, gemma, mistral, phi, gpt2 or opt."
            )
        return None

    def names(self, architecture: str) -> Mapping[str, Any]:
        """Return the names in `configs/layouts/decoder.yaml`, with those that the architecture has of its own."""
        table = _table()
        return {**table["default"], **table["architectures"].get(architecture, {})}


FAMILIES.add("decoder", Decoder())


@cache
def _table() -> dict[str, Any]:
    path = resources.folder("configs") / "layouts" / "decoder.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))
