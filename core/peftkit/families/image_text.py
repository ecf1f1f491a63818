"""Image-text models without what text never reaches: those parts are outlined by name, and never built or read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from peftkit.errors import PeftkitError

IMAGES = "pixel_values"
"""What a model of images and text is called with beside the text."""


class Unread(nn.Module):
    """Stands where a part was that text never reaches; it has no weights and refuses to run."""

    def __init__(self, path: str, part: nn.Module):
        super().__init__()
        self.path = path
        self.names = [f"{path}.{name}" if name else path for name, _ in part.named_modules()]
        """The names of the modules that were here."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise PeftkitError(f"{self.path} takes images or sound and is not loaded: train and ask with text alone.")


class AutoModelForCausalLM(auto.AutoModelForCausalLM):
    """The auto class of transformers, which builds and reads image-text models without what text never reaches."""

    @classmethod
    def from_config(cls, config: PretrainedConfig, **rest: Any) -> Any:
        """Build the model of a configuration with random weights."""
        if not has_decoder(config):
            return super().from_config(config, **rest)
        rest.pop("trust_remote_code", None)
        return cast(Any, _class_of(config))._from_config(config, **rest)

    @classmethod
    def from_pretrained(cls, folder: Any, *args: Any, config: PretrainedConfig | None = None, **rest: Any) -> Any:
        """Read a checkpoint; tensors of parts that text never reaches are not read."""
        trust = rest.get("trust_remote_code", False)
        known = config or AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        if not has_decoder(known):
            return super().from_pretrained(folder, *args, config=config, **rest)
        rest.pop("trust_remote_code", None)
        return cast(Any, _class_of(known)).from_pretrained(folder, *args, config=known, **rest)


def has_decoder(config: Any) -> bool:
    """Say whether a configuration is of a model that answers text alone too, with one of a decoder inside."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or getattr(config, "vision_config", None) is None:
        return False
    text = config.get_text_config()
    if text is config or config.is_encoder_decoder or text.is_encoder_decoder:
        return False
    asked = inspect.signature(_whole(config).forward).parameters
    does_without = IMAGES not in asked or asked[IMAGES].default is None
    return _whole(config).can_generate() and does_without and "decoder_input_ids" not in asked


def _whole(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of transformers for the whole model."""
    return cast(Any, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)[type(config)]


def unread(model: nn.Module) -> list[Unread]:
    """List the parts of a model that were left out."""
    return [module for module in model.modules() if isinstance(module, Unread)]


def _class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    with torch.device("meta"):
        outline = cast(Any, _whole(config))._from_config(config)
    return _without(_whole(config), tuple(_unreached(outline)))


@cache
def _without(whole: type[PreTrainedModel], paths: tuple[str, ...]) -> type[PreTrainedModel]:
    """Return a subclass of the same name whose models have nothing at these paths."""

    def build(self: Any, config: Any, *args: Any, **rest: Any) -> None:
        whole.__init__(self, config, *args, **rest)
        for path in paths:
            self.set_submodule(path, Unread(path, self.get_submodule(path)))

    def get_decoder(self: Any) -> Any:
        decoder, first, head = whole.get_decoder(self), self.get_input_embeddings(), self.get_output_embeddings()
        # Of a whole causal model inside, head and all, it is the part that makes hidden states.
        while head in set(decoder.modules()):
            decoder = next(child for child in decoder.children() if first in set(child.modules()))
        return decoder

    def get_output_embeddings(self: Any) -> Any:
        head = whole.get_output_embeddings(self)
        return head if head is not None else whole.get_decoder(self).get_output_embeddings()

    own: dict[str, Any] = {"__init__": build, "get_decoder": get_decoder, "__module__": whole.__module__}
    own["get_output_embeddings"] = get_output_embeddings
    return type(whole.__name__, (whole,), own)


def _unreached(outline: Any) -> Iterator[str]:
    """Iterate over the topmost modules with weights that a pass over text neither calls nor has its decoder in.

    `outline` is on the meta device, where some decoders cannot run to their end: all that stands before is called then.
    """
    kept = {outline.get_decoder(), outline.get_input_embeddings(), outline.get_output_embeddings()} - {None}
    called: set[nn.Module] = set()
    hooks = [module.register_forward_pre_hook(lambda module, _: called.add(module)) for module in outline.modules()]
    try:
        with torch.no_grad():
            outline(input_ids=torch.zeros(1, 2, dtype=torch.long, device="meta"), use_cache=False)
    except Exception as error:  # the model's own code may look at values, which are not there
        if isinstance(error, (TypeError, ValueError)) and outline.get_decoder() not in called:
            raise PeftkitError(f"{outline.config.model_type} does not run on text alone: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    yield from _outside(outline, "", kept, called)


def _outside(module: nn.Module, path: str, kept: set[nn.Module], called: set[nn.Module]) -> Iterator[str]:
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if child in kept:
            continue
        if kept & set(child.modules()):
            yield from _outside(child, inner, kept, called)
        elif child not in called and next(child.parameters(), None) is not None:
            yield inner
