"""Decoding many prompts: the longest first, in a batch that answers leave as they end and waiting prompts enter."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.generation.beams import Beams
from peftkit.generation.cache import ABSENT, Past, RowCache
from peftkit.generation.settings import Settings
from peftkit.generation.single import Single, Text
from peftkit.generation.stopping import Stopping
from peftkit.generation.whole_cache import WholeCache, keeps_rows

REFILL = 0.25
"""Prompts enter once so much of the batch is free: they are read together, and each reading is a step of its own."""
SHARED = 8
"""Tokens at the beginning of all prompts from which on they are computed once for all."""


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt."""

    text: str
    """Up to the stop text, special tokens left out."""
    ids: list[int]
    """The generated tokens; without the one that ended the answer, with those of a stop text."""
    finished: bool
    """Whether the answer ended by itself; else the limit cut it off."""


Thread = Generator[tuple[int, list[int]], Generation, None]
"""A conversation: yields a prompt with its number, is sent the answer, and yields the next prompt."""
OnProgress = Callable[[int, int], None]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
) -> list[Generation]:
    """Continue each prompt (token ids) and return the answers in the order of the prompts.

    An answer depends on its prompt, its number in the list where tokens are drawn, and not on the batch. Equal prompts
    are answered once where nothing is drawn. `on_progress` receives (answers so far, all). An empty prompt begins with
    the tokenizer's first special token. Raises PeftkitError where a prompt and its answer may be longer than the
    model's context.
    """
    started = [tuple(prompt) or beginning(tokenizer) for prompt in prompts]
    check_lengths(model, started, settings.max_new_tokens)
    numbers: dict[Any, list[int]] = {}
    for number, prompt in enumerate(started):
        numbers.setdefault((prompt, number) if settings.do_sample else prompt, []).append(number)
    answers: list[Generation | None] = [None] * len(started)

    def single(same: list[int]) -> Thread:
        answer = yield same[0], list(started[same[0]])
        for number in same:
            answers[number] = answer
        if on_progress:
            on_progress(sum(answer is not None for answer in answers), len(answers))

    converse(model, tokenizer, [single(same) for same in numbers.values()], settings, batch_size=batch_size)
    return [answer for answer in answers if answer is not None]


def converse(
    model: Any, tokenizer: Any, threads: Iterable[Thread], settings: Settings, *, batch_size: int = 32
) -> None:
    """Answer every prompt of every thread; `batch_size` prompts are decoded together.

    A thread's next prompt keeps what it has in common with the one before in the cache. A prompt is as many tokens as
    fit the context with `max_new_tokens` more; it is not empty.
    """
    stopping = Stopping.of(model, tokenizer, settings)
    search = Beams(settings, stopping) if settings.num_beams > 1 else Single(settings, stopping)
    with inference(model):
        Decoding(model, search, stopping, threads, batch_size).run()


@dataclass
class Waiting:
    """A prompt that is to enter the batch, and what of it is computed already."""

    thread: Thread
    text: Text
    past: Past | None = None

    @property
    def known(self) -> int:
        """Tokens whose keys and values are there; the last one is always computed, for its logits."""
        if self.past is None:
            return 0
        return min(common(self.past.ids, self.text.prompt), len(self.text.prompt) - 1)


class Decoding:
    """The batch: its texts, the cache with their rows, and the prompts that wait."""

    def __init__(
        self, model: Any, search: Single | Beams, stopping: Stopping, threads: Iterable[Thread], batch_size: int
    ):
        self.model, self.search, self.stopping, self.batch_size = model, search, stopping, batch_size
        self.device = next(model.parameters()).device
        self.accepted = inspect.signature(model.forward).parameters
        first = [Waiting(thread, Text(*next(thread))) for thread in threads]
        self.waiting = deque(sorted(first, key=lambda item: (-len(item.text.prompt), item.text.number)))
        self.live: list[Waiting] = []
        self.refills = keeps_rows(model.config)
        self.cache = self._empty(0, 0)
        self.tokens = torch.empty(0, dtype=torch.long, device=self.device)
        """The last token of every row, which the model has not read."""

    def run(self) -> None:
        """Decode until nothing waits and nothing lives."""
        self._share()
        while self.waiting or self.live:
            free = self.batch_size - len(self.live)
            if self.waiting and (not self.live or (self.refills and free >= max(1, REFILL * self.batch_size))):
                self._admit([self.waiting.popleft() for _ in range(min(free, len(self.waiting)))])
            else:
                self._step()

    def _step(self) -> None:
        """Read the last token of every row, and choose the next."""
        logits = self._forward(self.cache, self.tokens[:, None], 1)[:, -1]
        made = max(item.text.made for item in self.live)
        choice = self.search.advance([item.text for item in self.live], logits, self.cache.live_ids())
        self.tokens = choice.tokens
        if choice.sources is not None:
            self.cache.reorder(choice.sources, made)
        self._settle(choice.done)

    def _admit(self, items: list[Waiting]) -> None:
        """Read prompts, put their rows into the batch, and choose their first tokens."""
        copies, old = self.search.copies, len(self.live)
        if not old:
            self.cache = self._empty(min(self.batch_size, len(items) + len(self.waiting)) * copies, 0)
        rows = self.cache.rows
        cache, ends, logits = self._read(items)
        self.cache.append(cache, ends, copies)  # type: ignore[arg-type]
        del cache
        texts = [item.text for item in items]
        choice = self.search.advance(texts, logits.repeat_interleave(copies, 0), self.cache.live_ids()[rows:])
        self.tokens = torch.cat([self.tokens, choice.tokens])
        self.live += items
        for item in items:
            item.past = None  # its memory is free once nobody waits for it
        self._settle([False] * old + choice.done)

    def _read(self, items: Sequence[Waiting]) -> tuple[RowCache | WholeCache, Tensor, Tensor]:
        """Return a cache with the prompts, where each one ends in it, and the logits [prompts, vocabulary] after each.

        What is not known of a prompt stands behind what is, and is padded on the right, so that no row has a gap.
        """
        known = [item.known for item in items]
        rest = [item.text.prompt[length:] for item, length in zip(items, known, strict=True)]
        begin, width = max(known), max(map(len, rest))
        cache = self._empty(len(items), begin + width)
        cache.begin_with([(item.past, length) for item, length in zip(items, known, strict=True)])
        padding = [[ABSENT] * (width - len(ids)) for ids in rest]
        padded = [ids + pad if self.refills else pad + ids for ids, pad in zip(rest, padding, strict=True)]
        last = torch.tensor([(len(ids) if self.refills else width) - 1 for ids in rest], device=self.device)
        kept = last.unique()
        logits = self._forward(cache, torch.tensor(padded, device=self.device), kept)
        chosen = torch.searchsorted(kept, last) if logits.shape[1] == len(kept) else last
        return cache, last + begin + 1, logits[torch.arange(len(items), device=self.device), chosen]

    def _empty(self, rows: int, columns: int) -> RowCache | WholeCache:
        """Return a cache without rows, with memory for so many."""
        return RowCache(rows, columns, self.device) if self.refills else WholeCache(self.model.config, self.device)

    def _forward(self, cache: RowCache | WholeCache, tokens: Tensor, keep: int | Tensor) -> Tensor:
        """Return the logits [rows, new, vocabulary] after the new tokens, at least at those that `keep` names."""
        mask = cache.write(tokens)
        extra: dict[str, Any] = {}
        if "position_ids" in self.accepted:  # models with linear biases count positions from the mask themselves
            extra["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if "logits_to_keep" in self.accepted:
            extra["logits_to_keep"] = keep
        tokens = tokens.clamp(min=0)
        output = self.model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        cache.advance(tokens.shape[1])
        return output.logits

    def _settle(self, done: Sequence[bool]) -> None:
        """Hand out the answers that are there and take their rows out of the batch; threads that go on wait."""
        ended = [slot for slot, over in enumerate(done) if over]
        if not ended:
            return
        for slot in ended:
            self._answer(slot)
        count = len(self.live) - len(ended)
        holes = [slot for slot in ended if slot < count]
        movers = [slot for slot in range(count, len(self.live)) if not done[slot]]
        if movers:
            source, target = self._rows(movers), self._rows(holes)
            self.cache.copy(source, target)
            self.tokens[target] = self.tokens[source]
            for mover, hole in zip(movers, holes, strict=True):
                self.live[hole] = self.live[mover]
        del self.live[count:]
        self.cache.keep(count * self.search.copies)
        self.tokens = self.tokens[: count * self.search.copies]

    def _answer(self, slot: int) -> None:
        """Send a thread its answer, and have it wait with its next prompt where it has one."""
        item = self.live[slot]
        ids = item.text.answer
        finished = self.stopping.ended(ids)
        if ids[-1] in self.stopping.ends:
            ids = ids[:-1]
        try:
            text = Text(*item.thread.send(Generation(self.stopping.text(ids), ids, finished)))
        except StopIteration:
            return
        past = self.cache.past(slot * self.search.copies, common(item.text.prompt, text.prompt))
        self.waiting.appendleft(Waiting(item.thread, text, past))

    def _rows(self, slots: Sequence[int]) -> Tensor:
        """Return the rows of these texts."""
        first = torch.tensor(slots, device=self.device)[:, None] * self.search.copies
        return (first + torch.arange(self.search.copies, device=self.device)).flatten()

    def _share(self) -> None:
        """Compute once what all waiting prompts begin with."""
        prompts = [item.text.prompt for item in self.waiting]
        if len(prompts) < 2 or not self.refills:
            return
        length = min(common(min(prompts), max(prompts)), *(len(prompt) - 1 for prompt in prompts))
        if length >= SHARED:
            cache, _, _ = self._read([Waiting(self.waiting[0].thread, Text(0, prompts[0][:length]))])
            past = cache.past(0, length)
            for item in self.waiting:
                item.past = past


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


@contextmanager
def inference(model: Any) -> Iterator[None]:
    """Switch off dropout and gradients inside, and bring the model back to how it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """Return what an empty prompt is continued from: the beginning-of-sequence token, else the end-of-sequence."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise PeftkitError("an empty prompt cannot be continued: the tokenizer has no token to begin with.")
    return (first,)


def context_length(model: Any) -> int | None:
    """Return the most positions that the model takes, or None where it sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def check_lengths(model: Any, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raise PeftkitError where a prompt with `new` more tokens is longer than the model's context."""
    limit = context_length(model)
    long = [number for number, prompt in enumerate(prompts, 1) if limit is not None and len(prompt) + new > limit]
    if long:
        raise PeftkitError(
            f"prompt {long[0]} has {len(prompts[long[0] - 1])} tokens, and with generation.max_new_tokens {new} it is "
            f"more than the model's {limit} positions ({len(long)} of {len(prompts)} prompts are too long): lower "
            "generation.max_new_tokens, or take shorter prompts."
        )
