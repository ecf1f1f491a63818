"""What an adapter is: a trainable module around a frozen callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.low_rank import Pair, add_pair
from peftkit.layout import Site
from peftkit.ports.context import PROMPT, Context
from peftkit.ports.tokens import Tokens

Call = Callable[[Tensor], Tensor]


def factors(module: nn.Module) -> list[tuple[str, str]]:
    """List the names of the factors A [..., rank, in] and B [..., out, rank] that modules name in their `factors`."""
    named = ((path, getattr(part, "factors", None)) for path, part in module.named_modules())
    pairs = [(f"{path}." if path else "", names) for path, names in named if names is not None]
    return [(f"{path}{names[0]}", f"{path}{names[1]}") for path, names in pairs]


def undecayed(module: nn.Module) -> set[str]:
    """Return the names of tensors that a module and those in it, of any class, list in their attribute `undecayed`.

    Matrices that multiply hidden states decay; gates, scales, masks, logits and rows of prompts, which zero means
    something else to, do not. Vectors never decay, and need no mention.
    """
    named = ((path, getattr(part, "undecayed", ())) for path, part in module.named_modules())
    return {f"{path}.{name}" if path else name for path, names in named for name in names}


class MergeRefusedError(PeftkitError):
    """The adapter has no equal in the weights of the module it sits on."""


class Adapter(nn.Module):
    """A trainable module around a frozen one: `forward(call, x) -> y`; `call` is that module or the next adapter."""

    inside: ClassVar[bool] = False
    """Whether it acts within its module's computation, called by another port, instead of around it."""
    training_alone: ClassVar[bool] = False
    """Whether it acts in training alone: merged weights and what other software runs have nothing of it."""
    peftkit_context: Context
    adaptation: str = ""
    """The name of what it is seated as a part of."""
    reads: ClassVar[Literal["", "tokens", "prompt"]] = ""
    """What it asks for of `tokens`: where they stand, or all that is the prompt, on which its output then depends.

    One that is chosen by the key of a row asks for `tokens`, and its method names the `keys`.
    """
    row_size: int | None = None
    """The size of the rows that it puts in front of texts and leaves on the tape (`tell`); None where it does not."""
    moves: int = 0
    """By how much the positions of the text rise where it runs."""
    enabled: bool = True
    """Whether it runs while its adaptation does; `Adaptation.without` switches it."""
    factors: tuple[str, str] | None = None
    """The names of A [rank, in] and B [out, rank] where it depends on them by their product B A alone."""
    undecayed: tuple[str, ...] = ()
    """Its tensors, by name, that weight decay leaves alone beside vectors: those that multiply no hidden states."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # What a class says last holds: one that defines `forward` alone is not the pair of a class above it.
        if "forward" in cls.__dict__ and "pair" not in cls.__dict__:
            cls.pair = Adapter.pair
        elif "pair" in cls.__dict__ and "forward" not in cls.__dict__:
            cls.forward = Adapter.forward

    def __init__(self, site: Site):
        super().__init__()
        self.site = site
        self.__dict__["shared"] = None

    @property
    def shared(self) -> Any:
        """The module that all adapters of the method share, from `Method.share`; None where there is none."""
        return self.__dict__["shared"]

    @property
    def context(self) -> Context:
        """What the forward pass tells: the adaptation of each token, the rows, the step, and the tape."""
        return self.peftkit_context

    @property
    def tokens(self) -> Tokens:
        """The tokens of the pass that it computes on, where its class says that it reads them."""
        tokens, routing = self.context.tokens, self.context.routing
        if tokens is None:
            raise PeftkitError(f"the adapter at {self.site.id} reads token ids, and the model was given embeddings.")
        soft = self.context.soft.get(self.adaptation)
        first, count = (None, 0) if soft is None else soft()
        tokens = replace(tokens, first=first, soft=count)
        # Attention in a model's own code runs on all rows for each portion.
        own = self.site.heads is not None and self.site.heads.own
        return tokens if routing is None or own else routing.portion(tokens, self.adaptation)

    def tell(self, rows: Tensor) -> Tensor:
        """Leave the rows [..., length, size] of a prompt on the tape, for whoever looks at prompts; returns them."""
        self.context.tape[PROMPT, self] = rows
        return rows

    def once(self, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gives of each row that it computes on, [rows, ...], as it was when the prompt was read.

        It is kept beside the cache and found there in later passes.
        """
        tokens, kept = self.tokens, self.context.kept
        rows = tokens.rows[:, 0]
        if self in kept:
            return kept[self][rows]
        made = make()
        if not torch.is_grad_enabled():
            kept[self] = made.new_zeros(tokens.batch, *made.shape[1:]).index_copy_(0, rows, made)
        return made

    def start(self) -> None:
        """Take the start from the frozen weight, unless saved tensors follow; the default has it on being built."""

    def settle(self) -> None:
        """Write what the start leaves of the frozen weight into the site's module; the default leaves it alone."""

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        """Take on the shapes of saved tensors before they are loaded; the default keeps its own."""

    def pair(self, x: Tensor) -> Pair | None:
        """Return the low-rank pair that is all it adds to the frozen output of x now; None where it does more.

        It is asked once in a pass, and may draw random numbers. A class that defines `forward` alone is no pair.
        """
        return None

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """Compute the adapted output from the frozen computation `call` and its input; the default adds the pair."""
        pair = self.pair(x)
        if pair is None:
            raise TypeError(f"{type(self).__name__} does not define what it computes")
        return add_pair(call(x), pair)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the fp32 weight [out, in] and bias [out] of the module that computes the same without the adapter."""
        raise MergeRefusedError(
            f"the adapter at {self.site.id} cannot be merged into its module: keep it as an adapter, and generate "
            "and evaluate from the run folder."
        )

    def aux_loss(self, context: Context) -> Tensor | None:
        """Return a term of the loss that sees what the pass saw, and take that off the tape of `context`.

        It counts with each trained token of the pass; None where there is none, or it was taken already.
        """
        return None

    def shift(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the change of the stored scales and the offset, each [out, groups] or None, that equal the adapter.

        See `peftkit.quantization.weight.shift`. Raises MergeRefusedError where there are none.
        """
        raise MergeRefusedError(
            f"the adapter at {self.site.id} has no equal in the scales of a stored weight: merge it into dense weights."
        )
