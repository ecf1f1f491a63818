"""The cases of the benchmark of training: a model's size, a method and batches, with the same start for every side.

Every side gets the weights of one seeded Llama, and the adapter that our method starts with; the model stands in the
dtype of the case, the adapter in fp32. A side takes its steps through a `Gate`, which says when. What it reports is the
loss per trained token and the norm of the gradient before clipping, of which all sides have to find the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from profiles import Work, draw
from torch import Tensor, nn

from peftkit.adaptation import Adaptation, attach
from peftkit.data.batches import Batches, EpochPlan
from peftkit.layout import GROUPS, Layout
from peftkit.method import METHODS, Method
from peftkit.models.layerwise import without_weights
from peftkit.models.quiet import quiet

RATE, SEED, DEVIATION = 1e-4, 0, 0.03
RANK, ALPHA = 8, 16.0
ALL = {"rank": RANK, "alpha": ALPHA, "targets": "linear"}


@dataclass(frozen=True)
class Size:
    """The measures of a Llama whose keys have as many heads as its queries; the head is not tied."""

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 32000
    rows: int | None = None
    """The most rows of a batch; None leaves them to the profile."""

    @property
    def linears(self) -> int:
        """The weights of the linear layers of all blocks."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)


SIZES = {
    "tiny": Size(64, 2, 2, 128, 256),
    "60m": Size(512, 8, 8, 1376),
    "350m": Size(1024, 24, 16, 2816, rows=8),
    "1b": Size(2048, 22, 32, 5632),
    "7b": Size(4096, 32, 32, 11008),
}


@dataclass(frozen=True)
class Technique:
    """A method as ours is called, and whether the base is stored as NF4."""

    method: str
    options: dict[str, Any]
    packed: bool = False
    alike: bool = True
    """Whether Hugging Face peft computes the same beyond the first step, and not only in it."""
    norms: bool = True
    """Whether the norm of the gradient is taken of the same gradient there."""

    def build(self) -> Method:
        """Build our method."""
        return METHODS[self.method].from_options(self.options)


TECHNIQUES = {
    "lora": Technique("lora", ALL),
    "lora-qv": Technique("lora", {**ALL, "targets": ("q", "v")}),
    "dora": Technique("dora", ALL),
    # Hugging Face peft projects the gradient in the optimizer, when its norm has been taken.
    "lora-fa": Technique("lora-fa", {**ALL, "correction": "projected"}, norms=False),
    # Hugging Face peft moves the text by the prefix, which matters as soon as the keys are not zero.
    "prefix": Technique("prefix-tuning", {"length": 10, "projection": None}, alike=False),
    "prompt": Technique("prompt-tuning", {"length": 10}),
    "ia3": Technique("ia3", {}),
    "qlora": Technique("lora", ALL, packed=True),
}


@dataclass(frozen=True)
class Case:
    """One measurement of one side: what is trained, on what, how, and for how many steps in all."""

    side: str
    size: str
    profile: str
    method: str
    precision: str
    dtype: str
    """What the frozen weights are held in."""
    rows: int
    steps: int
    device: str = "cpu"

    @property
    def technique(self) -> Technique:
        """The method."""
        return TECHNIQUES[self.method]

    @property
    def measures(self) -> Size:
        """The model's measures."""
        return SIZES[self.size]

    def work(self) -> Work:
        """Draw the batches, the same every time."""
        return draw(self.profile, self.steps, self.rows, self.measures.vocabulary)

    def small(self) -> Case:
        """The case on the tiny model, which loads all the code that it takes."""
        return replace(self, size="tiny", steps=2)


class Gate(Protocol):
    """What stands between the steps of a side."""

    def loaded(self) -> None:
        """Note that the model is there and the adapter is not yet."""

    def begin(self) -> None:
        """Wait for the first turn."""

    def passed(self, loss: float, norm: float) -> None:
        """Report a step, and wait where the turn is over."""


# The model ----------------------------------------------------------------------------------------------------------


def llama(case: Case, pack: Callable[[Tensor], nn.Module] | None) -> nn.Module:
    """Build the Llama on the device with seeded weights, the linear layers of its blocks as `pack` makes them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size, dtype = case.measures, getattr(torch, case.dtype)
    options = {"hidden_size": size.width, "num_hidden_layers": size.layers, "vocab_size": size.vocabulary}
    options |= {"num_attention_heads": size.heads, "num_key_value_heads": size.heads, "intermediate_size": size.inner}
    config = AutoConfig.for_model("llama", **options, max_position_embeddings=2048, tie_word_embeddings=False)
    with quiet(), without_weights():
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    blocks = {site.path for site in Layout(model).linears if site.role in GROUPS["linear"]} if pack else set()
    generator = torch.Generator(case.device).manual_seed(SEED)
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.ones(parameter.shape, dtype=dtype, device=case.device)
            if parameter.dim() > 1:
                value.normal_(std=DEVIATION, generator=generator)
            if pack and path in blocks:
                parent, _, key = path.rpartition(".")
                setattr(model.get_submodule(parent), key, pack(value))
            else:
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.to(case.device)


def started(case: Case, model: nn.Module, *, keep_base: bool) -> Adaptation:
    """Attach our method at its seeded start; the keys of a prefix are zero, which is the same at any position."""
    adaptation = attach(model, [case.technique.build()], seed=SEED, keep_base=keep_base)
    if case.method == "prefix":
        for name, parameter in adaptation.parameters():
            if name.endswith("/K"):
                parameter.data.zero_()
    return adaptation


# The batches --------------------------------------------------------------------------------------------------------


class Planned(Batches):
    """Batches in the order in which they are given."""

    def plan(self, epoch: int) -> EpochPlan:
        """Return each run of `batch_examples` rows."""
        return EpochPlan(np.arange(len(self)), self._cut(self.lengths))
