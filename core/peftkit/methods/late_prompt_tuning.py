"""Late prompt tuning makes a soft prompt in the middle of the model, of the states there (Liu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.hidden_prompt import BlankPrompt, HiddenPrompt
from peftkit.layers.prompt_places import AtPrompt, Places, absent, out_of_streams, put_rows
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter, Call


@dataclass(frozen=True, kw_only=True)
class LatePromptTuning(Method, name="late-prompt-tuning"):
    """From layer k on the rows P = U ReLU(D h + b) + c [length, width] stand in front; h are states that reach layer k.

    `naive`: h [width] is that of the prompt's last token, D [bottleneck, width], U [length width, bottleneck].
    `pooling`: the states of all its tokens go through D and are averaged in `length` parts, and U is [width,
    bottleneck]. D, b, U and c start as torch's linear layers. Where there is no prompt, its first token stands for it.

    Below layer k no token sees the places where the rows will stand; they are there, so that the positions of the text
    are higher by `length` in all layers, of which layers with relative positions know nothing. As nothing is trained
    below, nothing is kept there for the backward pass. Examples are padded and share nothing.
    """

    port: ClassVar[str] = "embedding + attention + hidden"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2210.11292"
    summary: ClassVar[str] = (
        "Makes a soft prompt for each example from the states in the middle of the model, where it enters. Nothing of "
        "the layers below is kept for the backward pass."
    )
    default_learning_rate: ClassVar[float] = 0.1
    size: ClassVar[str | None] = "bottleneck"
    mergeable: ClassVar[bool] = False
    by_row: ClassVar[bool] = True

    length: Annotated[int, Ge(1)] = 5
    """Number of prompt positions."""
    layer: Annotated[int, Ge(1)] | None = None
    """The first layer that sees the prompt, counted from 0; null takes the middle."""
    generator: Literal["naive", "pooling"] = "naive"
    """Whether the last token of the prompt makes the rows, or averages over all of them."""
    bottleneck: Annotated[int, Ge(1)] = 128
    """Inner size of the generator."""

    def enters(self, layout: Layout) -> int:
        """Return the first layer that sees the prompt; PeftkitError for one that is not there."""
        count = len(layout.blocks)
        layer = count // 2 if self.layer is None else self.layer
        if not 1 <= layer < count:
            raise PeftkitError(
                f"{self.name}: layer is {layer}, and of the {count} layers of this {layout.kind} model 1 to "
                f"{count - 1} have one below them."
            )
        return layer

    def share(self, layout: Layout) -> nn.Module:
        return Places()

    def sites(self, layout: Layout) -> list[Site]:
        layer = self.enters(layout)
        # What layer k reads is what the one below it gives.
        return [layout.embedding(), *_below(layout, layer), *layout.hidden("block", [layer - 1])]

    def build(self, site: Site) -> Adapter:
        if site.role == "embedding":
            return BlankPrompt(site, self.length)
        return LateRows(site, self) if site.role == "block" else HiddenPrompt(site, self.length)


class LateRows(AtPrompt):
    """Puts the rows into the states that a layer gives to the next one."""

    reads: ClassVar[Literal["", "tokens", "prompt"]] = "prompt"

    def __init__(self, site: Site, method: LatePromptTuning):
        super().__init__(site)
        self.length, self.pools = method.length, method.generator == "pooling"
        self.down = nn.Linear(site.outputs, method.bottleneck)
        self.up = nn.Linear(method.bottleneck, site.outputs * (1 if self.pools else method.length))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, slots = call(x), self.slots
        if slots is None or (absent(slots < 0) and not torch.is_grad_enabled()):
            return y
        return put_rows(y, self.tell(self.rows(y)), slots, self.streams)

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows [B, length, width] for states x [B, T, width]."""
        tokens, x = self.tokens, out_of_streams(x, self.streams, self.site.outputs)
        with torch.autocast(x.device.type, enabled=False):
            if not self.pools:
                state = tokens.last(x).to(self.down.weight.dtype)
                return self.up(torch.relu(self.down(state))).unflatten(1, (self.length, -1))
            inner = self.down(x.to(self.down.weight.dtype))
            pooled = [self._pooled(states[read]) for states, read in zip(inner, tokens.prompt, strict=True)]
            return self.up(torch.relu(torch.stack(pooled)))

    def _pooled(self, inner: Tensor) -> Tensor:
        """Return the averages [length, bottleneck] over parts of equal length of the tokens [T, bottleneck]."""
        if not len(inner):
            return inner.new_zeros(self.length, inner.shape[1])
        return F.adaptive_avg_pool1d(inner.T, self.length).T


def _below(layout: Layout, layer: int) -> list[Site]:
    """Return the attentions below a layer; none where those are of another kind."""
    return [site for site in layout.attention() if site.layer is not None and site.layer < layer]
