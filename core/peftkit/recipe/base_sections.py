"""What is adapted: the sections of the frozen model, how its weights are stored, and the methods that adapt it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from peftkit.recipe.section import Count, PathText, Section, Seed, Text


class ModelSection(Section):
    """The language model to adapt: pretrained by `name`, or with random weights by `init`."""

    short: ClassVar[str | None] = "name"
    name: PathText | None = None
    """A Hugging Face id, a folder, a GGUF file, or a model that is known by a name (`bundled/tiny`, `smollm2-135m`)."""
    init: dict[str, Any] | None = None
    """Start from random weights: `architecture` (the model type that transformers knows) and its configuration."""
    gguf: Text | None = None
    """The GGUF file to read of a folder or a repository that holds several, or other weights too."""
    tokenizer: PathText | None = None
    """Another tokenizer than the model's own: a Hugging Face id or a folder."""
    revision: Text | None = None
    """The branch, tag or commit of a model on the hub."""
    rope_factor: Annotated[float, Field(ge=1, le=1024)] = 1.0
    """How many times as many positions as the model was trained on, where those are rotary."""
    rope_type: Literal["linear", "ntk", "yarn"] = "linear"
    """How: `linear` divides positions by the factor, `ntk` raises the base of the angles, `yarn` goes by frequency."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the frozen weights are held in; `auto` takes what suits the device."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a model from the hub."""
    seed: Seed = 0
    """Draws the random weights of `init`."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.name is None) == (self.init is None):
            given = "neither 'name' nor 'init'" if self.name is None else "both 'name' and 'init'"
            raise ValueError(f"found {given}; allowed: exactly one of them (write null for the other)")
        if self.init is not None and self.gguf is not None:
            raise ValueError(f"found gguf '{self.gguf}' beside init; allowed: gguf beside a name")
        if self.init is not None and self.rope_factor > 1:
            raise ValueError(f"found rope_factor {self.rope_factor:g} beside init; allowed: rope_factor beside a name")
        if self.init is not None and not isinstance(self.init.get("architecture"), str):
            raise ValueError("found no 'architecture' in init; allowed: a model type, such as 'architecture: llama'")
        return self


class MethodChoice(Section):
    """One method with its options, complete."""

    name: Text
    """The registered name."""
    options: dict[str, Any] = {}
    """Every option of the method, by name."""


class FormatChoice(Section):
    """One storage format with its options, complete."""

    format: Text = "none"
    """The registered name."""
    options: dict[str, Any] = {}
    """Every option of the format, by name."""


class QuantizationSection(FormatChoice):
    """How the frozen weights are stored."""

    short: ClassVar[str | None] = "format"
    format: Text = "none"
    """The storage format of the blocks' linear layers and stacks of experts; `none` keeps them as they are."""
    options: dict[str, Any] = {}
    """The format's options, which may also stand beside `format`."""
    modules: dict[Text, FormatChoice] = {}
    """Formats of single modules by role, group or pattern of names, which may also stand beside `format`."""
    init: Text | None = None
    """How low-rank pairs start, for each method with an `init` that does not set its own (`loftq`, `lq-lora`,
    `lq-lora-fisher`)."""
    budget: Annotated[float, Field(gt=0, le=16)] | None = None
    """Bits per weight, scales included: chooses a format for each linear layer and stack of the blocks by its error."""


class CalibrationSection(Section):
    """What is shown before training to formats (`gptq`, `awq`) and pruning (`wanda`) that look at activations."""

    samples: Count = 128
    """Examples of the training split, drawn by `seed`, each up to `train.max_length` tokens; all where there are fewer.
    Of streamed data it is the first ones."""
    seed: Seed = 0
    """Draws the examples."""
    weights: PathText | None = None
    """A run whose base was pruned or calibrated, from the same model in the same way: its weights are taken as they
    are, and nothing is drawn. An adapter fits the very weights that it was trained on."""
