"""XPrompt prunes the tokens of a trained soft prompt, then pieces of them, and trains what is left (Ma et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

from annotated_types import Ge, Gt, Lt

from peftkit.errors import PeftkitError
from peftkit.layers.pruned_prompt import PrunedPrompt
from peftkit.layout import Layout, Site
from peftkit.methods.prompt_tuning import PromptTuning, start_rows
from peftkit.ports.adapter import Adapter


@dataclass(frozen=True, kw_only=True)
class XPrompt(PromptTuning, name="xprompt"):
    """Rows P_i g_i * z_i with masks g of tokens and z of `pieces` equal parts of each, in four stages of one run.

    Trained for `trained` of the steps as `prompt-tuning`; then for `scored` of them |dL/dg_i| is summed over steps, and
    the tokens where it is least are taken out of the prompt, `tokens_cut` of them; the same of the pieces that are
    left, `pieces_cut` of which become zero; and the rest of the steps train what is left, from the values that the
    first stage ended with. While scores are taken the prompt stands still. The paper scores single examples, here the
    gradients of whole steps are. A token that is cut is in no text any more, so that prompts are shorter from there on,
    and the mask of pieces and what it leaves are all that is saved (`left`). The official code keeps such rows as
    zeros. An adapter that `keep_best` takes from before a cut is cut by the sizes of its entries.
    """

    paper: ClassVar[str] = "Ma et al. 2022, arXiv:2210.04457"
    summary: ClassVar[str] = (
        "Trains a soft prompt, cuts the tokens and then the pieces of tokens that matter least, and trains the rest "
        "once more. All of that is one run."
    )
    default_learning_rate: ClassVar[float] = 0.1

    pieces: Annotated[int, Ge(1)] = 16
    """Number of pieces of a token, which divides the width."""
    tokens_cut: Annotated[float, Ge(0), Lt(1)] = 0.3
    """Share of the tokens that is cut; the paper searches 0.1 to 0.9."""
    pieces_cut: Annotated[float, Ge(0), Lt(1)] = 0.3
    """Share of the pieces of the other tokens that is cut."""
    trained: Annotated[float, Gt(0), Lt(1)] = 0.4
    """Share of the steps before anything is scored."""
    scored: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Share of the steps, at least one, in which tokens are scored, and of those for pieces."""
    left: Annotated[int, Ge(1)] | None = None
    """Pieces that a prompt holds which was cut already: set by training, and never by hand."""

    @property
    def kept(self) -> int:
        """The number of tokens that are left."""
        return self.length if self.left is not None else max(1, self.length - int(self.tokens_cut * self.length))

    @property
    def kept_pieces(self) -> int:
        """The number of pieces that are left of those tokens."""
        whole = self.kept * self.pieces
        return self.left or max(1, whole - int(self.pieces_cut * whole))

    def ends(self, steps: int) -> tuple[int, int, int]:
        """Return the steps with which the first three stages end; PeftkitError where none is left for the last."""
        first, scored = max(1, int(self.trained * steps)), max(1, int(self.scored * steps))
        ends = first, first + scored, first + 2 * scored
        if ends[2] >= steps:
            raise PeftkitError(
                f"{self.name}: training for {ends[0]} of {steps} steps and scoring twice for {scored} leaves none to "
                "train what is left: lower trained or scored, or set train.max_steps to 4 or more."
            )
        return ends

    def sites(self, layout: Layout) -> list[Site]:
        width = layout.embedding().outputs
        if width % self.pieces:
            able = [n for n in range(1, self.pieces) if width % n == 0]
            raise PeftkitError(
                f"{self.name}: {self.pieces} pieces do not divide the width {width}: set pieces to {able[-1]}."
            )
        return super().sites(layout)

    def build(self, site: Site) -> Adapter:
        start = start_rows(site, self, self.length) if self.left is None else None
        return PrunedPrompt(site, self.length, self.pieces, self.left, start)

    @property
    def finished(self) -> XPrompt:
        return replace(self, length=self.kept, left=self.kept_pieces, init="random", text=None, text_ids=None)

    def told(self, adapters: Mapping[str, Adapter]) -> Mapping[str, Any]:
        facts = [cast(PrunedPrompt, adapter).told() for adapter in adapters.values() if self.left is None]
        return facts[0] if facts else {}

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if self.left is None:
            ends = self.ends(steps)
            stage = sum(step >= end for end in ends)
            for adapter in adapters.values():
                cast(PrunedPrompt, adapter).score(stage)

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        if self.left is None:
            ends = self.ends(steps)
            for adapter in adapters.values():
                cast(PrunedPrompt, adapter).advance((self.kept, self.kept_pieces), step, ends)

    def finish(self, adapters: Mapping[str, Adapter]) -> None:
        if self.left is None:
            for adapter in adapters.values():
                cast(PrunedPrompt, adapter).shrink((self.kept, self.kept_pieces))
