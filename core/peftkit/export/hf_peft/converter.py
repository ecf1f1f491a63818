"""What carries the adapters of one method to and from Hugging Face peft, and how to refuse what that library lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.registry import Registry
from peftkit.schemas import Count, Size, Stored

PREFIX = "base_model.model."
ALONE = "keep the adapter beside the model, and generate and evaluate from the run folder"
Config = dict[str, Any]
Tensors = dict[str, Tensor]


class HubConfig(Stored):
    """What is taken of adapter_config.json; which keys are there depends on the type."""

    peft_type: str | None = None
    r: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Zero where a type has another size in its place; a converter that `needs` it has at least one."""
    init_r: Size | None = None
    lora_alpha: float | None = None
    alpha: float | None = None
    lora_dropout: float | None = None
    vera_dropout: float | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    projection_prng_key: int | None = None
    decompose_factor: int | None = None
    adapter_len: int | None = None
    adapter_layers: int | None = None
    bias: str | None = None
    init_lora_weights: bool | str | None = None
    trainable_token_indices: list[Count] | dict[str, list[Count]] | None = None


class Converter:
    """Writes and reads the adapters of `method`; a configuration of the type `peft_type` is read as that method.

    None as the type: the library has the method under the type of another one, as which its folders are read.
    """

    names: Mapping[str, str] = {}
    """Our name of each tensor that stands behind a module's path there."""
    needs: tuple[str, ...] = ()
    """The keys that a configuration has to have."""
    whole: ClassVar[str] = "part of such an adapter"
    """What a tensor of another name is not."""
    of_stacks: ClassVar[bool] = False
    """Whether it carries the adapters of stacked experts, which that library has of plain pairs alone."""

    def __init__(self, method: type[Any], peft_type: str | None):
        self.method = method
        self.peft_type = peft_type

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Say whether a folder of this configuration is read as the method."""
        return self.peft_type is not None and config.get("peft_type") == self.peft_type

    def write(self, method: Any, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        """Return the configuration and tensors that Hugging Face peft opens, or raise PeftkitError."""
        raise TypeError(f"{type(self).__name__} does not define what it writes")

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        """Return the method and its state (keys '<site>/<tensor>'), or raise PeftkitError."""
        raise TypeError(f"{type(self).__name__} does not define what it reads")

    def read_all(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> list[tuple[Method, Tensors]]:
        """Return each method that a folder is read as with its state: the one that `read` gives, or more beside it."""
        return [self.read(config, tensors, layout)]

    def config(self, **options: Any) -> Config:
        """Return a configuration of the type with these options."""
        return {"peft_type": self.peft_type, "task_type": "CAUSAL_LM", **options, "inference_mode": True}

    def named(self, values: Iterable[tuple[str, Mapping[str, Tensor]]]) -> Tensors:
        """Return tensors under their names there, for pairs of a module's path and tensors under ours."""
        theirs = {ours: name for name, ours in self.names.items()}
        return {f"{PREFIX}{path}.{theirs[key]}": own[key] for path, own in values for key in own}

    def entries(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
        """Iterate over (path of the module, our name, fp32 tensor); a tensor of another name is a PeftkitError."""
        known = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.({'|'.join(map(re.escape, self.names))})")
        for key, tensor in tensors.items():
            match = known.fullmatch(re.sub(r"\.default(?=\.\w+$|$)", "", key))
            if match is None:
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not {self.whole}.")
            yield match[1], self.names[match[2]], tensor.float()


CONVERTERS: Registry[Converter] = Registry("method of Hugging Face peft", "peftkit.export.hf_peft")


def convert(method: Method, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
    """Return the configuration and tensors that Hugging Face peft opens; PeftkitError for a method that it lacks."""
    if method.name in CONVERTERS:
        converter = CONVERTERS[method.name]
        stack = next((adapter.site.id for adapter in adapters.values() if adapter.site.stack is not None), None)
        if stack is not None and not converter.of_stacks:
            raise PeftkitError(
                f"the method '{method.name}' has adapters of the experts at {stack}, and Hugging Face peft has plain "
                "low-rank pairs alone there: export with --format merged instead."
            )
        return converter.write(method, adapters, model)
    instead = "export with --format merged instead" if method.mergeable else ALONE
    raise PeftkitError(f"the method '{method.name}' has no counterpart in Hugging Face peft: {instead}.")
