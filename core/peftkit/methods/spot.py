"""SPoT starts a soft prompt from one that was trained on another task (Vu et al. 2021, arXiv:2110.07904)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from peftkit import trained_prompts
from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.methods.prompt_tuning import Prompt, PromptTuning
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class SPoT(PromptTuning, name="spot"):
    """`prompt-tuning` whose P starts as the prompt of a source run on the same base, with that one's length.

    Of several `sources` it is the one that is most similar to the prompt of `target`, a short run of prompt tuning on
    the task itself: by the cosine of the means over rows, or the mean of the cosines of rows. Which one was taken, and
    the hash of its file, is saved with the adapter. Without sources this is the training of a source prompt.
    """

    paper: ClassVar[str] = "Vu et al. 2021, arXiv:2110.07904"
    summary: ClassVar[str] = (
        "Starts a soft prompt from the one that a run on another task has learnt. Of several such runs it takes the "
        "one whose prompt is most like that of a short run on the task itself."
    )
    default_learning_rate: ClassVar[float] = 0.13

    sources: tuple[str, ...] = ()
    """Folders of runs of soft prompts on other tasks."""
    target: str | None = None
    """Folder of a run on this task, whose prompt the sources are compared with."""
    similarity: Literal["mean", "tokens"] = "mean"
    """The cosine of the means over rows, or the mean of the cosines of each row with each."""
    chosen: str | None = None
    """The source that was taken: found where not given, and saved with the adapter."""
    sha256: str | None = None
    """The hash of the file with its prompt."""

    def with_tokenizer(self, tokenizer: Any) -> PromptTuning:
        found = self.found()
        if found is None:
            return super().with_tokenizer(tokenizer)
        return replace(self, length=len(found.rows), chosen=found.run, sha256=found.digest)

    def found(self) -> trained_prompts.TrainedPrompt | None:
        """Return the prompt that is started from; None without sources."""
        if self.chosen is not None:
            return trained_prompts.read(self.name, self.chosen)
        sources = [trained_prompts.read(self.name, run) for run in self.sources]
        if self.target is None:
            if len(sources) > 1:
                raise PeftkitError(
                    f"{self.name}: {len(sources)} sources are given and nothing to compare them with: set target to a "
                    "run of prompt-tuning on this task, or leave one source."
                )
            return sources[0] if sources else None
        if not sources:
            raise PeftkitError(f"{self.name}: target is given and no sources: set sources to the runs to choose from.")
        target = trained_prompts.read(self.name, self.target)
        wide = next((each for each in sources if each.rows.shape[1] != target.rows.shape[1]), None)
        if wide is not None:
            raise PeftkitError(
                f"{self.name}: the prompt in {wide.run} is {wide.rows.shape[1]} wide and that in {self.target} "
                f"{target.rows.shape[1]}: name runs of one base."
            )
        return trained_prompts.nearest(target, sources, self.similarity)

    def check_base(self, base: Mapping[str, Any]) -> None:
        found = self.found()
        if found is not None:
            found.check_base(self.name, base)

    def build(self, site: Site) -> Adapter:
        return TransferredPrompt(site, self)


class TransferredPrompt(Prompt):
    """A prompt P [length, width] that starts from a file."""

    def __init__(self, site: Site, method: SPoT):
        super().__init__(site, method)
        self.method = method

    @property
    def drawn(self) -> Tensor | None:
        return None if self.method.sources or self.method.chosen else self.P

    def start(self) -> None:
        found = self.method.found()
        if found is None:
            return
        if found.rows.shape != self.P.shape:
            raise PeftkitError(
                f"{self.method.name}: the prompt in {found.run} is {list(found.rows.shape)}, and {list(self.P.shape)} "
                "is wanted: name a run of the same base."
            )
        with torch.no_grad():
            self.P.copy_(found.rows)
