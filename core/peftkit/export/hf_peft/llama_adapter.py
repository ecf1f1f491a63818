"""LLaMA-Adapter: prompts and gates of attention as Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import ALONE, CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.llama_adapter import GatedPrompt, LlamaAdapter

PROMPT, GATE = "adaption_prompt", "adaption_gate"
EXCHANGED = ("llama", "mistral")
"""Families where Hugging Face peft computes the same; in its only other one, GPT-2, it adds behind the output map."""


class GatedPromptConverter(Converter):
    """One prompt [1, length, width] and one gate [1] for each of the topmost layers."""

    def write(
        self, method: LlamaAdapter, adapters: Mapping[str, GatedPrompt], model: nn.Module
    ) -> tuple[Config, Tensors]:
        self._check(Layout(model), method.variant)
        tensors = {}
        for path, adapter in adapters.items():
            tensors[f"{PREFIX}{path}.{PROMPT}"] = adapter.P.detach()[None]
            tensors[f"{PREFIX}{path}.{GATE}"] = adapter.g.detach()
        return self.config(adapter_len=method.length, adapter_layers=len(adapters)), tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        self._check(layout, "paper")
        state = {}
        for key, tensor in tensors.items():
            path, _, name = key.removeprefix(PREFIX).rpartition(".")
            if name not in (PROMPT, GATE):
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a LLaMA-Adapter.")
            own, value = ("g", tensor) if name == GATE else ("P", tensor.squeeze(0))
            state[f"{path}/{own}"] = value.float()
        options = {"length": config.get("adapter_len"), "top": config.get("adapter_layers")}
        return self.method.from_options(options), state

    def _check(self, layout: Layout, variant: str) -> None:
        has_plain_heads = layout.attention()[0].parts["q"].outputs == layout.width
        if layout.kind not in EXCHANGED or not has_plain_heads or variant != "paper":
            raise PeftkitError(
                f"{self.method.name}: Hugging Face peft computes the same for {' and '.join(EXCHANGED)} models whose "
                f"heads add up to their width, with variant paper; this is a {layout.kind} model with variant "
                f"{variant}: {ALONE}."
            )


CONVERTERS.add("llama-adapter", GatedPromptConverter(LlamaAdapter, "ADAPTION_PROMPT"))
