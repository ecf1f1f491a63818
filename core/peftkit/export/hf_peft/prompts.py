"""Soft prompts and prefixes of attention as Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import ALONE, CONVERTERS, Config, Converter, Tensors
from peftkit.layers.prefix import Prefix
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.methods.p_tuning import PTuning
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prefix_tuning import PrefixTuning
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
        layout = Layout(model)
        if layout.other_tables() or layout.told_tokens():
            raise PeftkitError(
                f"{method.name}: layers of this model read token ids, of which soft prompts have the padding token's "
                f"here and none in Hugging Face peft: {ALONE}."
            )
        rows = prompt.rows().detach()
        sizes = {"num_virtual_tokens": prompt.length, "token_dim": rows.shape[1], "num_transformer_submodules": 1}
        return self.config(**sizes), {TENSOR: rows}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        site, rows = layout.embedding(), _only(tensors, "a soft prompt")
        if rows is None or rows.ndim != 2 or rows.shape[1] != site.outputs:
            raise PeftkitError(_misshapen(rows, site.outputs))
        return self.method(length=len(rows), **self.options), {f"{site.id}/{self.key}": rows.float()}


class PrefixConverter(Converter):
    """Keys and values [length, layers, 2, groups, size] in front of those of a text that begins behind them.

    They are read as `prefix-tuning`, which is what the library calls them, with and without an MLP in training.
    """

    def __init__(self, method: type[PTuningV2], reads: bool):
        super().__init__(method, "PREFIX_TUNING")
        self.is_read = reads

    def reads(self, config: Mapping[str, Any]) -> bool:
        return self.is_read and super().reads(config)

    def write(self, method: PTuningV2, adapters: Mapping[str, Prefix], model: nn.Module) -> tuple[Config, Tensors]:
        if not method.shift:
            raise PeftkitError(
                f"the method '{method.name}' leaves the positions of the text as they are, and prefix tuning in "
                "Hugging Face peft moves them by the length of the prefix, so that the same prefix gives other logits "
                f"there: train with shift: true, or {ALONE}."
            )
        sites = _sites(method.name, Layout(model), [adapter.site for adapter in adapters.values()])
        rows = torch.cat([part.detach() for adapter in adapters.values() for part in adapter.prefix()], 1)
        heads = sites[0].heads
        assert heads is not None
        sizes = {"num_layers": len(sites), "token_dim": heads.keys, "num_attention_heads": _groups(sites[0], model)}
        shape = {"num_virtual_tokens": len(rows), "num_transformer_submodules": 1, "prefix_projection": False}
        return self.config(**sizes, **shape), {TENSOR: rows}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        rows = _only(tensors, "a prefix")
        sites = _sites(PrefixTuning.name, layout, layout.attention())
        heads = sites[0].heads
        assert heads is not None
        whole = len(sites) * 2 * heads.keys
        if rows is None or rows.ndim != 2 or rows.shape[1] != whole:
            raise PeftkitError(_misshapen(rows, whole))
        parts = zip(sites, rows.float().chunk(len(sites), 1), strict=True)
        state = {f"{site.id}/{key}": x for site, part in parts for key, x in zip("KV", part.chunk(2, 1), strict=True)}
        return PrefixTuning(length=len(rows), projection=None, shift=True), state


def _sites(method: str, layout: Layout, sites: Sequence[Site]) -> Sequence[Site]:
    """Return the sites of a prefix where the library can hold it: one in each layer, all alike, seen by every query."""
    text = layout.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ("full_attention",))
    alike = {site.heads for site in sites}
    if len(sites) != len(layout.blocks) or len(alike) > 1 or any(h is None or h.keys != h.values for h in alike):
        fault = "has a prefix of one size in every layer, and here layers differ or have none"
    elif any(heads is not None and (heads.own or heads.shared) for heads in alike):
        fault = f"puts it into the cache, past which {layout.kind} models attend"
    elif kinds != {"full_attention"} or getattr(text, "sliding_window", None):
        fault = "has it in the cache, where the windows of this model lose it"
    else:
        return sites
    raise PeftkitError(f"{method}: Hugging Face peft {fault}: {ALONE}.")


def _groups(site: Site, model: nn.Module) -> int:
    """Return how many heads of keys a site has."""
    text = getattr(model, "config").get_text_config()  # noqa: B009
    heads = site.heads
    assert heads is not None
    return heads.groups or getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def _only(tensors: Mapping[str, Tensor], what: str) -> Tensor | None:
    """Return the one tensor of a folder, or None; a PeftkitError tells of another one."""
    stray = next((key for key in tensors if key != TENSOR), None)
    if stray is not None:
        raise PeftkitError(f"adapter_model.safetensors: the tensor '{stray}' is not part of {what}.")
    return tensors.get(TENSOR)


def _misshapen(rows: Tensor | None, width: int) -> str:
    fault = "missing" if rows is None else f"of the shape {list(rows.shape)}"
    return f"adapter_model.safetensors: '{TENSOR}' is {fault}, and [length, {width}] is wanted."


CONVERTERS.add("prompt-tuning", PromptConverter(PromptTuning, "PROMPT_TUNING", "P"))
CONVERTERS.add("p-tuning", PromptConverter(PTuning, "P_TUNING", "E", encoder="none"))
CONVERTERS.add("prefix-tuning", PrefixConverter(PrefixTuning, reads=True))
CONVERTERS.add("p-tuning-v2", PrefixConverter(PTuningV2, reads=False))
