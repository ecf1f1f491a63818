"""Transferable prompt tuning carries a soft prompt to another task, or through a projector to another model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit import trained_prompts
from peftkit.errors import PeftkitError
from peftkit.layers.projector import fit_rows, projector
from peftkit.layout import Site
from peftkit.methods.prompt_tuning import PromptTuning, start_rows
from peftkit.ports.adapter import Adapter
from peftkit.ports.embedding import SoftPrompt


@dataclass(frozen=True, kw_only=True)
class TransferablePromptTuning(PromptTuning, name="transferable-prompt-tuning"):
    """P starts as the prompt S [length, source width] of another run, or as W2 tanh(W1 S + b1) + b2 of it.

    A prompt of the same base is the start as it is. One of another model goes through the projector, W1 [hidden, source
    width], W2 [width, hidden]: with `pairs` of runs on the same tasks, of the source's model and of this one, it is
    fitted to them before the run (the distance loss: the mean square of the differences, by Adam for `steps`), and P is
    trained from there on. `tune: projector` trains the projector by the task's loss in the place of P, and what is
    saved is P alone. Without a source this is `prompt-tuning`. The hash of the source is saved with the adapter.
    """

    paper: ClassVar[str] = "Su et al. 2021, arXiv:2111.06719"
    summary: ClassVar[str] = (
        "Starts a soft prompt from one of another task, or of another model through a small projector. The projector "
        "is learnt from pairs of prompts, or by the task itself."
    )
    default_learning_rate: ClassVar[float] = 0.13

    source: str | None = None
    """Folder of the run whose prompt is carried over."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of folders of runs on one task each, of the source's model and of this one."""
    tune: Literal["prompt", "projector"] = "prompt"
    """What the task's loss trains."""
    hidden: Annotated[int, Ge(1)] = 128
    """Inner size of the projector."""
    steps: Annotated[int, Ge(1)] = 300
    """Steps by which the projector is fitted to the pairs."""
    sha256: str | None = None
    """The hash of the file with the source's prompt: found where not given, and saved with the adapter."""

    def with_tokenizer(self, tokenizer: Any) -> PromptTuning:
        if self.source is None:
            if self.pairs or self.tune == "projector":
                raise PeftkitError(f"{self.name}: a projector has nothing to project: set source to a run.")
            return super().with_tokenizer(tokenizer)
        found = trained_prompts.read(self.name, self.source)
        return replace(self, length=len(found.rows), sha256=found.digest)

    @property
    def projects(self) -> bool:
        """Whether a projector stands between the source and P."""
        return bool(self.pairs) or self.tune == "projector"

    def check_base(self, base: Mapping[str, Any]) -> None:
        if self.source is not None and not self.projects:
            trained_prompts.read(self.name, self.source).check_base(self.name, base)
        for _, run in self.pairs:
            trained_prompts.read(self.name, run).check_base(self.name, base)

    def build(self, site: Site) -> Adapter:
        return CarriedPrompt(site, self)

    @property
    def finished(self) -> TransferablePromptTuning:
        return replace(self, tune="prompt")

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        for adapter in adapters.values():
            cast(CarriedPrompt, adapter).collapse()


class CarriedPrompt(SoftPrompt):
    """P [length, width], or in its place in training the projector and what it projects."""

    S: Tensor
    undecayed: tuple[str, ...] = ("P",)

    def __init__(self, site: Site, method: TransferablePromptTuning):
        super().__init__(site, method.length)
        self.method = method
        self.P: nn.Parameter | None = nn.Parameter(start_rows(site, method, method.length))
        self.projector: nn.Sequential | None = None
        if method.tune == "projector" and method.source is not None:
            found = trained_prompts.read(method.name, method.source)
            self.P, self.projector = None, projector(found.rows.shape[1], method.hidden, site.outputs)
            self.register_buffer("S", found.rows.to(next(self.projector.parameters()).device))

    @property
    def drawn(self) -> Tensor | None:
        return None if self.method.source else self.P

    def start(self) -> None:
        method, fitted = self.method, self.projector
        if method.source is None:
            return
        rows = trained_prompts.read(method.name, method.source).rows
        if method.pairs:
            fitted = fitted or projector(rows.shape[1], method.hidden, self.site.outputs)
            fit(fitted, method, rows.shape[1], self.site.outputs)
        if self.P is None:
            return
        with torch.no_grad():
            rows = rows if fitted is None else fitted(rows)
            if rows.shape != self.P.shape:
                raise PeftkitError(
                    f"{method.name}: the prompt in {method.source} is {rows.shape[1]} wide and this model "
                    f"{self.site.outputs}: set tune to projector, or pairs to runs of both models."
                )
            self.P.copy_(rows)

    def rows(self) -> Tensor:
        if self.projector is None:
            assert self.P is not None
            return self.P
        with torch.autocast(self.S.device.type, enabled=False):
            return self.projector(self.S)

    def collapse(self) -> None:
        """Put P itself in the place of the projector."""
        if self.projector is not None:
            self.P = nn.Parameter(self.rows().detach().clone())
            self.projector = None
            del self.S


def fit(module: nn.Sequential, method: TransferablePromptTuning, inputs: int, outputs: int) -> None:
    """Fit a projector to the pairs of a method, row by row; PeftkitError for prompts of other sizes."""
    pairs = [tuple(trained_prompts.read(method.name, run) for run in pair) for pair in method.pairs]
    for one, other in pairs:
        found, wanted = (len(one.rows), one.rows.shape[1], other.rows.shape[1]), (len(other.rows), inputs, outputs)
        if found != wanted:
            raise PeftkitError(
                f"{method.name}: the prompts in {one.run} and {other.run} are {list(one.rows.shape)} and "
                f"{list(other.rows.shape)}: prompts of one length are wanted, {inputs} and {outputs} wide."
            )
    x, y = (torch.cat([pair[side].rows for pair in pairs]) for side in (0, 1))
    fit_rows(module, x, y, method.steps)
