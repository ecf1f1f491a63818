"""Soft prompts as Hugging Face peft has them, and why prefixes of attention are not carried over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import ALONE, CONVERTERS, REFUSALS, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.p_tuning import PTuning
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.ports.embedding import SoftPrompt

TENSOR = "prompt_embeddings"


class PromptConverter(Converter):
    """The rows [length, width] that stand in front; that library puts them in front of a first special token too.

    They are read as the adapter's tensor `key`, with the options that have them trained as they are.
    """

    def __init__(self, method: type[Any], peft_type: str, key: str, **options: Any):
        super().__init__(method, peft_type)
        self.key, self.options = key, options

    def write(self, method: Method, adapters: Mapping[str, SoftPrompt], model: nn.Module) -> tuple[Config, Tensors]:
        (prompt,) = adapters.values()
        if Layout(model).other_tables():
            raise PeftkitError(
                f"{method.name}: this model adds embeddings by token id in its layers, of which soft prompts have the "
                f"padding token's here and none in Hugging Face peft: {ALONE}."
            )
        rows = prompt.rows().detach()
        sizes = {"num_virtual_tokens": prompt.length, "token_dim": rows.shape[1], "num_transformer_submodules": 1}
        return self.config(**sizes), {TENSOR: rows}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        stray = next((key for key in tensors if key != TENSOR), None)
        if stray is not None:
            raise PeftkitError(f"adapter_model.safetensors: the tensor '{stray}' is not part of a soft prompt.")
        site, rows = layout.embedding(), tensors.get(TENSOR)
        if rows is None or rows.ndim != 2 or rows.shape[1] != site.outputs:
            fault = "missing" if rows is None else f"of the shape {list(rows.shape)}"
            raise PeftkitError(
                f"adapter_model.safetensors: '{TENSOR}' is {fault}, and [length, {site.outputs}] is wanted."
            )
        return self.method(length=len(rows), **self.options), {f"{site.id}/{self.key}": rows.float()}


CONVERTERS.add("prompt-tuning", PromptConverter(PromptTuning, "PROMPT_TUNING", "P"))
CONVERTERS.add("p-tuning", PromptConverter(PTuning, "P_TUNING", "E", encoder="none"))
REFUSALS["p-tuning-v2"] = REFUSALS["prefix-tuning"] = (
    "leaves the positions of the text as they are, and prefix tuning in Hugging Face peft moves them by the length of "
    "the prefix, so that the same prefix gives other logits there"
)
