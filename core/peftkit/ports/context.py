"""What a forward pass tells the adapters of a model: one context at its root, the same in backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.kernels.tree import Tree
from peftkit.keys import Keys
from peftkit.ports.tokens import Tokens

LINK = "peftkit_context"
"""Where each module of a model keeps the context."""
PROMPT = "prompt"
"""What the tape has, beside each adapter that puts something in front of texts: its rows."""
CALL, REACH, SPANS = "call", "reach", "spans"
"""What the tape holds of a module beside what it reads: how it was called, whether it stops at its keys, and the spans
of a row within which its tokens attend."""


@dataclass(frozen=True)
class Spans:
    """Stretches of a row, by position: the first one of `first` tokens, those behind it of `length` each."""

    length: int
    first: int = 0


@dataclass(frozen=True)
class Routing:
    """The adaptation of each token: portions of a batch, each with an adaptation of its own."""

    names: tuple[str | None, ...]
    """The adaptation of each portion; None for the base."""
    sizes: tuple[int, ...]
    """How many rows or flat tokens each portion has."""
    rows: tuple[int, ...] | None = None
    """The rows of all portions, one portion after the other; None where these are flat tokens [1, N] in order."""

    @classmethod
    def of_rows(cls, names: Sequence[str | None]) -> Routing:
        """Run row i of every batch through the adaptation `names[i]`."""
        portions = {name: [i for i, row in enumerate(names) if row == name] for name in dict.fromkeys(names)}
        return cls(tuple(portions), tuple(map(len, portions.values())), tuple(i for p in portions.values() for i in p))

    @classmethod
    def of_tokens(cls, portions: Sequence[tuple[str | None, int]]) -> Routing:
        """Run the first `portions[0][1]` flat tokens through the adaptation `portions[0][0]`, and so on."""
        return cls(tuple(name for name, _ in portions), tuple(size for _, size in portions))

    @cached_property
    def places(self) -> Tensor:
        """[rows] long: where each row of the batch stands among the portions."""
        return torch.tensor(self.rows).argsort()

    def dimension(self, x: Tensor) -> int:
        """Return the dimension of x along which the portions stand; PeftkitError where there is none."""
        count = sum(self.sizes)
        hidden = x.ndim > 2 or (x.ndim == 2 and not x.is_floating_point())
        if self.rows is None and hidden and tuple(x.shape[:2]) == (1, count):
            return 1
        if x.shape[0] == count:
            return 0
        if self.rows is not None:
            raise PeftkitError(f"the batch has {x.shape[0]} rows and adapters are named for {count} of them.")
        raise _apart(x, count)

    def length(self, x: Tensor, shape: tuple[int, int] | None) -> int:
        """Return how many tokens a row has among x [B * T, width], in a pass over `shape` (B, T) where that is known.

        Raises PeftkitError for other tokens than all of them, whose rows cannot be told.
        """
        count = sum(self.sizes)
        rows, length = shape or (count, len(x) // count)
        if rows != count:
            raise PeftkitError(f"the batch has {rows} rows and adapters are named for {count} of them.")
        if len(x) != rows * length:
            raise _apart(x, rows * length)
        return length

    def portion(self, tokens: Tokens, name: str) -> Tokens:
        """Return the tokens of the portion of an adaptation."""
        place, dimension = self.names.index(name), int(self.rows is None)
        return tokens.each(lambda x: self.order(x, dimension).split(self.sizes, dimension)[place])

    def order(self, x: Tensor, dimension: int = 0) -> Tensor:
        """Return x with the portions one after the other."""
        if self.rows is None:
            return x
        return x.index_select(dimension, torch.tensor(self.rows, device=x.device))

    def restore(self, x: Tensor, dimension: int = 0) -> Tensor:
        """Return the portions of x in the order of the batch."""
        return x if self.rows is None else x.index_select(dimension, self.places.to(x.device))


def _apart(x: Tensor, count: int) -> PeftkitError:
    return PeftkitError(
        f"an adapter sits on a module that is given {list(x.shape)} instead of all {count} tokens: it cannot share a "
        "batch with others."
    )


@dataclass
class Context:
    """Which adaptations run on what is computed now, and along what; a plain object, seen by backward threads too."""

    active: tuple[str, ...] = ()
    """The adaptations that run on every token, where no routing says otherwise."""
    routing: Routing | None = None
    merged: set[str] = field(default_factory=set)
    """The adaptations that are in the weights, and do not run."""
    trees: tuple[Tree, ...] = ()
    """Along which attention runs over flat tokens; of several each has the tokens of one portion."""
    step: int = 0
    """How many optimizer steps are done."""
    view: int = 0
    """Which pass over a micro-batch this is, where several are compared."""
    shape: tuple[int, int] | None = None
    """The rows and the tokens of each in the pass that the whole model is in; None where its body alone runs."""
    tape: dict[Any, Any] = field(default_factory=dict)
    """What adapters leave for others in a pass; empty when one begins."""
    tokens: Tokens | None = None
    """What the body is given in this pass, where adapters ask for that; its portion alone while one runs alone."""
    told: Tensor | None = None
    """Which of the tokens that come next are the prompt, as whoever runs the model tells."""
    kept: dict[Any, Tensor] = field(default_factory=dict)
    """What adapters keep of the rows of this pass for later passes with its cache, [rows, ...] each."""
    hearers: set[str] = field(default_factory=set)
    """The adaptations for which it is kept what the body is given."""
    ears: list[Any] = field(default_factory=list)
    """The hooks that keep it, one set for all of them."""
    moves: dict[str, Callable[[], int]] = field(default_factory=dict)
    """By how much adaptations raise the positions of the text."""
    readers: set[str] = field(default_factory=set)
    """The adaptations whose adapters depend on all of a prompt, so that no two rows have anything in common."""
    keyed: dict[str, Keys] = field(default_factory=dict)
    """Of each adaptation whose adapters are chosen by the key of a row, the keys that it knows."""
    keys: Tensor | None = None
    """The number of the key [rows] of each row whose ids carry none, as whoever runs the model tells."""
    soft: dict[str, Callable[[], tuple[int, int]]] = field(default_factory=dict)
    """Of each adaptation with soft prompts the id of their first row and how many there are."""
    own_attention: str | None = None
    """The attention that the model's configuration names where adapters inside have put theirs in its place."""
    heard: Callable[..., None] | None = None
    """Called with the module, q, k, v and what else is asked wherever attention runs along trees."""
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after the adaptations that run have changed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adaptations that run on some token, in the order of the portions."""
        return self.active if self.routing is None else tuple(name for name in self.routing.names if name)

    @property
    def reads_prompts(self) -> bool:
        """Whether what runs on some token depends on all of its prompt."""
        return not self.readers.isdisjoint(self.names)

    @property
    def needs_beginnings(self) -> bool:
        """Whether a text is to be read from its first token on, as what is kept of others tells adapters too little."""
        return self.reads_prompts or not self.keyed.keys().isdisjoint(self.names)

    def forget(self, name: str) -> None:
        """Drop what is known of an adaptation that is taken off."""
        self.moves.pop(name, None)
        self.soft.pop(name, None)
        self.keyed.pop(name, None)
        self.readers.discard(name)
        self.hearers.discard(name)
        for ear in self.ears if not self.hearers else ():
            ear.remove()

    @property
    def raised(self) -> int:
        """By how much the positions of the text are raised at most."""
        return max([0, *(self.moves[name]() for name in self.names if name in self.moves)])

    def offsets(self) -> Tensor | int:
        """Return by how much the positions of each token are raised: of all alike, or [B, 1] or [1, N]."""
        if self.routing is None or not self.raised:
            return self.raised
        moves = [self.moves[name]() if name in self.moves else 0 for name in self.routing.names]
        each = torch.tensor(moves).repeat_interleave(torch.tensor(self.routing.sizes))
        return each[None] if self.routing.rows is None else self.routing.restore(each)[:, None]

    @property
    def positions(self) -> Tensor | None:
        """[N] long: the place in its row of each flat token; None for padded rows."""
        return torch.cat([tree.positions for tree in self.trees]) if self.trees else None

    @property
    def rows(self) -> list[Any] | None:
        """Where the flat tokens of each row stand, those that rows share among them; None for padded rows."""
        starts = [sum(len(tree.ids) for tree in self.trees[:number]) for number in range(len(self.trees))]
        rows = [row + start for start, tree in zip(starts, self.trees, strict=True) for row in tree.rows]
        return rows or None

    def activate(self, names: Sequence[str]) -> None:
        """Run these adaptations from now on."""
        self.active = tuple(names)
        self.notify()

    def notify(self) -> None:
        """Tell the watchers."""
        for watcher in self.watchers:
            watcher()

    @contextmanager
    def routed(self, routing: Routing) -> Iterator[None]:
        """Run each token inside through its own adaptation."""
        self.routing, self.shape, before = routing, None, self.routing
        self.notify()
        try:
            yield
        finally:
            self.routing, self.shape = before, None
            self.tape.clear()
            self.notify()

    @contextmanager
    def only(self, name: str | None) -> Iterator[None]:
        """Run one adaptation on all that is computed inside, a portion of a batch; watchers are not notified."""
        before = self.active, self.routing, self.tokens
        if self.tokens is not None and self.routing is not None and name in self.routing.names and name is not None:
            self.tokens = self.routing.portion(self.tokens, name)
        self.active, self.routing = () if name is None else (name,), None
        try:
            yield
        finally:
            self.active, self.routing, self.tokens = before

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run the bare body on something else inside, in the middle of a pass."""
        before = self.tokens, self.kept, dict(self.tape)
        try:
            with self.only(None), self.prompted(None):
                yield
        finally:
            self.tokens, self.kept = before[:2]
            self.tape.clear()
            self.tape.update(before[2])

    @contextmanager
    def with_keys(self, numbers: Tensor | None) -> Iterator[None]:
        """Give the rows of the passes inside whose ids carry no key these ones, [rows]; as many rows follow of each."""
        before, self.keys = self.keys, numbers
        try:
            yield
        finally:
            self.keys = before

    @contextmanager
    def prompted(self, prompt: Tensor | None) -> Iterator[None]:
        """Tell which tokens of the passes inside are the prompt, [B, T] bool; None tells nothing."""
        before, self.told = self.told, prompt
        try:
            yield
        finally:
            self.told = before


def context_of(model: nn.Module) -> Context:
    """Return the context of a model, by its root; at the first call it is made and known to every module."""
    context = model.__dict__.get(LINK)
    if context is None:
        context = Context()
        for module in model.modules():
            module.__dict__[LINK] = context
        model.register_forward_pre_hook(_begin, with_kwargs=True)
    return context


def _begin(model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    context: Context = model.__dict__[LINK]
    context.tape.clear()
    given = [named.get("input_ids"), named.get("inputs_embeds"), *args[:1]]
    context.shape = next((tuple(x.shape[:2]) for x in given if x is not None), None)
