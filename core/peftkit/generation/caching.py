"""Which cache a model is decoded with: what its own code makes says which may do, and a comparison that it does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.generation.utils import ALL_CACHE_NAMES

from peftkit.generation.cache import ABSENT, Past, RowCache
from peftkit.generation.forward import Forward
from peftkit.generation.own_cache import OwnCache
from peftkit.generation.row_layers import kind_of, states_of
from peftkit.generation.whole_texts import WholeTexts
from peftkit.kernels.wide import wide
from peftkit.keys import like, plain
from peftkit.ports.context import context_of

Rows = RowCache | OwnCache | WholeTexts
LONG, FORCED = 4, 2
"""Tokens of the longer texts that are compared, and of what they are continued with; the shorter ones have one."""
TRIALS = 3
"""Comparisons before a cache is given up: where two experts are as good, rounding alone may change the logits."""
FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What a model's code raises at a cache that it cannot work with."""


@dataclass(frozen=True)
class Caching:
    """A way to keep what is read."""

    name: str
    make: Callable[[int, int], Rows]
    """Returns a cache without rows, with memory for so many rows and columns."""
    refills: bool
    """Whether rows are added to those that are there."""
    mixed: bool
    """Whether prompts of several lengths are read together, padded behind, and go on from a part that was read."""
    most: int | None = None
    """Texts of a batch at most."""
    apart: bool = False
    """Whether each prompt is read from its first token on, as what adapters make of it depends on all of it."""

    def read(
        self, prompts: Sequence[Sequence[int]], pasts: Sequence[tuple[Past | None, int]]
    ) -> tuple[Any, Tensor, Tensor]:
        """Return a cache with the prompts, where each one ends in it, and the logits [prompts, vocabulary] after each.

        What is not known of a prompt stands behind what is, and is padded on the right, so that no row has a gap.
        """
        known = [length for _, length in pasts]
        rest = [list(prompt[length:]) for prompt, length in zip(prompts, known, strict=True)]
        begin, width = max(known), max(map(len, rest))
        rows = self.make(len(prompts), begin + width)
        rows.begin_with(pasts)
        padded = torch.tensor([ids + [ABSENT] * (width - len(ids)) for ids in rest], device=rows.ids.device)
        last = torch.tensor([len(ids) - 1 for ids in rest], device=rows.ids.device)
        with context_of(rows.forward.model).prompted(padded != ABSENT):
            return rows, last + begin + 1, rows.read(padded, last)

    def together(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield which of the prompts of these lengths are read together."""
        for length in [None] if self.mixed else dict.fromkeys(lengths):
            yield [index for index, own in enumerate(lengths) if length in (None, own)]


def choose(model: Any, prompts: Sequence[Sequence[int]], copies: int) -> Caching:
    """Return the quickest way that gives what the model gives without a cache, on a few tokens of the prompts.

    `copies` is the number of rows of a text, which are reordered where it is more than one. A way that its kind
    admits and that does not hold is told, once for all models of this class.
    """
    forward = Forward(model)
    trials = [CacheTrial(forward, prompts, copies, number) for number in range(TRIALS)]
    ways = list(_ways(forward, trials[0].texts[0], copies))
    for way in ways:
        faults = []
        for trial in trials:
            if (fault := trial.fault(way)) is None:
                if way.name != ROWS:
                    _tell(type(model).__name__, way.name)
                return replace(way, apart=context_of(model).needs_beginnings)
            faults.append(fault)
        logging.getLogger("peftkit").info("%s: %s: %s", type(model).__name__, way.name, faults[0])
    _tell(type(model).__name__, WHOLE)
    return whole_texts(model)


def whole_texts(model: Any) -> Caching:
    """Return the way that is right by itself: without a cache, each length of the texts by itself."""
    forward = Forward(model)
    return Caching(WHOLE, lambda rows, columns: WholeTexts(forward), refills=True, mixed=False)


ROWS = "one cache for prompts of any length"
OWN = "the model's own cache, a batch for each length of the prompts"
ALONE = "the model's own cache, one prompt at a time"
WHOLE = "no cache, the whole text for each token"


@cache
def _tell(model: str, way: str) -> None:
    logging.getLogger("peftkit").warning("%s generates with %s, which is slower.", model, way)


@dataclass(frozen=True)
class Made:
    """The cache that a model makes."""

    name: str
    """The model's argument for it."""
    cache: Any


def _ways(forward: Forward, text: Sequence[int], copies: int) -> Iterator[Caching]:
    """Yield the ways that the cache which the model's own code makes admits, the quickest first."""
    made = _made(forward, text)
    if made is None:
        return
    layers = list(made.cache.layers) if type(made.cache) is DynamicCache else []
    kinds = [kind for kind in map(kind_of, layers) if kind is not None]
    if layers and len(kinds) == len(layers):

        def rows(height: int, width: int) -> RowCache:
            return RowCache(forward, made.name, kinds, height, width)

        yield Caching(ROWS, rows, refills=True, mixed=not states_of(layers))
    if not hasattr(forward.model, "prepare_inputs_for_generation"):
        return

    def own(height: int, width: int) -> OwnCache:
        return OwnCache(forward)

    if copies == 1 or hasattr(made.cache, "reorder_cache"):
        yield Caching(OWN, own, refills=False, mixed=False)
    if copies == 1:
        yield Caching(ALONE, own, refills=False, mixed=False, most=1)


def _made(forward: Forward, text: Sequence[int]) -> Made | None:
    """Return the cache that the model makes of a text, None where it makes none.

    A model that returns none may keep states in its modules, where nothing tells one text from another.
    """
    try:
        outputs = forward(torch.tensor([text], device=forward.device), use_cache=True)
    except FAILURES as error:
        _raise_if_full(error)
        return None
    return next((Made(name, outputs[name]) for name in ALL_CACHE_NAMES if outputs.get(name) is not None), None)


class CacheTrial:
    """Four texts, two of one token, read with and without a cache and continued with tokens that are given."""

    def __init__(self, forward: Forward, prompts: Sequence[Sequence[int]], copies: int, number: int):
        self.forward, self.copies = forward, copies
        vocabulary = getattr(forward.config, "vocab_size", None)
        # Tokens of the prompts, since others may stand for images or for nothing; soft ones are the adapters' own.
        ids = list(
            dict.fromkeys(
                id for prompt in prompts[:32] for id in plain(prompt) if vocabulary is None or id < vocabulary
            )
        )
        drawn = cycle(ids[::-1] or [0])
        next(islice(drawn, number, number), None)
        lengths = (LONG + FORCED, 1 + FORCED) * 2
        texts = (list(islice(drawn, length)) for length in lengths)
        self.texts = [like(text, prompt) for text, prompt in zip(texts, cycle(prompts))]
        self.known: dict[int, Tensor] = {}

    def fault(self, way: Caching) -> str | None:
        """Say what is wrong with a way, or return None where it gives what the model gives without a cache."""
        for texts in [[0, 1]] if way.refills else [[0], [1]] if way.most == 1 else [[0, 2], [1, 3]]:
            try:
                found = self._continued(way, [self.texts[index] for index in texts])
            except FAILURES as error:
                _raise_if_full(error)
                return f"{type(error).__name__}: {error}"
            for step, logits in enumerate(found):
                # At the last step all rows continue the last text.
                order = texts if step < FORCED else texts[-1:] * len(texts)
                wanted = torch.stack([self._alone(index)[step] for index in order])
                if (off := difference(logits, wanted.repeat_interleave(self.copies, 0))) > tolerance(self.forward):
                    return f"the logits differ by {off:.2g} of their range"
        return None

    def _alone(self, index: int) -> Tensor:
        """Return the logits [steps, vocabulary] of a text without a cache, from the prompt's last token on."""
        if index not in self.known:
            ids = torch.tensor([self.texts[index]], device=self.forward.device)
            prompt = torch.arange(ids.shape[1], device=ids.device)[None] < ids.shape[1] - FORCED
            with context_of(self.forward.model).prompted(prompt):
                self.known[index] = self.forward(ids, use_cache=False).logits[0, -FORCED - 1 :]
        return self.known[index]

    def _continued(self, way: Caching, texts: Sequence[list[int]]) -> list[Tensor]:
        """Return the logits [rows, vocabulary] of each step with a cache; before the last, all rows become the last."""
        prompts = [text[:-FORCED] for text in texts]
        cache, parts = way.make(len(texts) * self.copies, 0), []
        for group in way.together(list(map(len, prompts))):
            part, ends, logits = way.read([prompts[index] for index in group], [(None, 0)] * len(group))
            cache.append(part, ends, self.copies)
            parts.append(logits.repeat_interleave(self.copies, 0))
        found = [torch.cat(parts)]
        rows, device = cache.rows, found[0].device
        one = torch.zeros(rows, dtype=torch.long, device=device)
        following = torch.tensor([text[-FORCED:] for text in texts], device=device).repeat_interleave(self.copies, 0)
        found.append(cache.read(following[:, :1], one))
        if self.copies > 1:
            cache.reorder(one + rows - 1, cache.live_ids().shape[1])
        else:
            cache.copy(one[:-1] + rows - 1, torch.arange(rows - 1, device=device))
        found.append(cache.read(following[-1:, 1:].expand(rows, 1), one))
        return found


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of logits as a part of their range."""
    found, wanted = wide(found), wide(wanted)
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    finite = wanted[wanted.isfinite()]
    reach = float(finite.max() - finite.min()) if len(finite) else 1.0
    off = (found - wanted).abs().masked_fill(same, 0.0).nan_to_num(nan=torch.inf)
    return float(off.max()) / (reach or 1.0)


def tolerance(forward: Forward) -> float:
    """Return the part of their range by which logits may differ: half the digits of what the model computes in."""
    kinds = {parameter.dtype for parameter in forward.model.parameters() if parameter.dtype.is_floating_point}
    if torch.is_autocast_enabled(forward.device.type):
        kinds.add(torch.get_autocast_dtype(forward.device.type))
    # Models in float64 compute a part in fp32, too.
    return max(torch.finfo(kind).eps for kind in {torch.float32, *kinds} if kind.itemsize > 1) ** 0.5


def _raise_if_full(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError):
        raise error
