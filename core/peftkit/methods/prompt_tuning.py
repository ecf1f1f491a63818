"""Prompt tuning learns input embeddings that stand in front of every text (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.context import LINK, Context
from peftkit.ports.embedding import SoftPrompt

FREQUENT = 5000
"""Tokens to draw from, as in the paper: the most frequent ones."""
EXAMPLES = 4000
"""Of the training data, in the order of the first epoch, among whose tokens the frequent ones are counted."""


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Method, name="prompt-tuning"):
    """The embeddings E(x) [T, width] become [P; E(x)] with a trainable P [length, width], held in fp32.

    The prompt stands behind the beginning-of-sequence token where there is one, and directly in front of the text
    where a batch is padded on the left; its positions carry no label, and those of the text move by `length`. Every
    start moves the logits. Hugging Face peft puts its prompt in front of the beginning-of-sequence token: the two are
    equal on inputs without that token, and where a tokenizer sets it, nothing is exported there.
    """

    port: ClassVar[str] = "embedding"
    family: ClassVar[str] = "soft prompt"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    summary: ClassVar[str] = (
        "Learns a few input embeddings that stand in front of every text. The model itself stays as it is, and the "
        "prompt costs its length in every context."
    )
    default_learning_rate: ClassVar[float] = 0.1
    rate_falls_with_width: ClassVar[bool] = False
    size: ClassVar[str | None] = "length"
    mergeable: ClassVar[bool] = False

    length: Annotated[int, Ge(1)] = 20
    """Number of prompt embeddings; the paper uses 100 for T5."""
    init: Literal["vocabulary", "random", "text"] = "vocabulary"
    """How P starts: embeddings of tokens drawn from the 5000 most frequent ones of the training data (of its first 4000
    examples; without data, from the first 5000 ids), uniform between -0.5 and 0.5, or `text`."""
    text: str | None = None
    """For `init: text`: P starts as the embeddings of its tokens, without special ones, repeated or cut to `length`."""
    text_ids: tuple[Annotated[int, Ge(0)], ...] | None = None
    """The token ids of `text`: found with the model's tokenizer where not given, and saved with the adapter."""

    def with_tokenizer(self, tokenizer: Any) -> PromptTuning:
        if self.init != "text" or self.text is None or self.text_ids is not None:
            return self
        return replace(self, text_ids=tuple(tokenizer(self.text, add_special_tokens=False)["input_ids"]))

    def sites(self, layout: Layout) -> list[Site]:
        site = layout.embedding()
        if self.init == "text":
            self._check_text(site)
        elif self.text is not None or self.text_ids is not None:
            raise PeftkitError(f"{self.name}: a text is given, and init is {self.init}: set init to text.")
        return [site]

    def build(self, site: Site) -> Adapter:
        return Prompt(site, self)

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        for adapter in adapters.values() if self.init == "vocabulary" else ():
            rows = adapter.drawn if isinstance(adapter, SoftPrompt) else None
            ids = torch.empty(0) if rows is None else frequent(batches, adapter.site.inputs)
            if rows is not None and len(ids):
                with torch.no_grad():
                    rows.copy_(words(adapter.site, ids[torch.randperm(len(ids))], len(rows)))

    def _check_text(self, site: Site) -> None:
        if self.text is None and self.text_ids is None:
            raise PeftkitError(f"{self.name}: init is text, and there is none: set text, such as 'Describe this:'.")
        if self.text_ids is None:
            raise PeftkitError(f"{self.name}: text has no ids yet: call with_tokenizer(tokenizer), or give text_ids.")
        if not self.text_ids:
            raise PeftkitError(f"{self.name}: text is {self.text!r}, which has no tokens: give at least one word.")
        if max(self.text_ids) >= site.inputs:
            raise PeftkitError(
                f"{self.name}: text_ids has {max(self.text_ids)}, and the model's token embedding {site.inputs} rows: "
                "leave text_ids out, and they are found with the model's own tokenizer."
            )


class Prompt(SoftPrompt):
    """A prompt P [length, width] of free embeddings, as many as the method's unless another number is given."""

    undecayed: tuple[str, ...] = ("P",)

    def __init__(self, site: Site, method: PromptTuning, length: int | None = None):
        super().__init__(site, length or method.length)
        self.P = nn.Parameter(start_rows(site, method, self.length))

    @property
    def drawn(self) -> Tensor | None:
        return self.P

    def rows(self) -> Tensor:
        return self.P


def frequent(batches: Iterable[Any], size: int) -> Tensor:
    """Return the FREQUENT most frequent ids below `size` in the first EXAMPLES of the batches, the most frequent first.

    There are fewer where the examples have fewer, and none without examples; of equal counts the lower id comes first.
    """
    counts, seen = torch.zeros(size, dtype=torch.long), 0
    for batch in batches:
        ids = batch.input_ids[batch.attention_mask.bool()].cpu()
        counts += torch.bincount(ids[ids < size], minlength=size)
        seen += len(batch.input_ids)
        if seen >= EXAMPLES:
            break
    order = counts.sort(descending=True, stable=True).indices
    return order[: min(FREQUENT, int((counts > 0).sum()))]


def start_rows(site: Site, method: PromptTuning, count: int) -> Tensor:
    """Return the rows [count, width] with which a prompt starts before data is seen, as the method's `init` says."""
    rows = torch.empty(count, site.outputs)
    if method.init == "random":
        nn.init.uniform_(rows, -0.5, 0.5)
    elif not rows.is_meta:
        chosen = torch.randperm(min(FREQUENT, site.inputs)) if method.text_ids is None else method.text_ids
        rows.copy_(words(site, torch.as_tensor(chosen), count))
    return rows


def words(site: Site, ids: Tensor, count: int) -> Tensor:
    """Return the embeddings [count, width] of the tokens `ids` in fp32, as the embedding puts them out.

    Tokens are repeated where there are fewer than `count`; what else is attached to the model does not run.
    """
    ids = ids.repeat(-(-count // len(ids)))[:count]
    device = next(site.module.parameters()).device
    context = site.module.__dict__.get(LINK, Context())
    with torch.no_grad(), context.only(None):
        return site.module(ids.to(device)).float().to(ids.device)
