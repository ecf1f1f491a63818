"""Decoding many prompts: the longest first, in a batch that answers leave as they end and waiting prompts enter."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from peftkit.generation.beams import Beams
from peftkit.generation.cache import Past
from peftkit.generation.caching import Caching, choose, whole_texts
from peftkit.generation.limits import beginning, check_lengths
from peftkit.generation.long_rope import RopeScale, scale_of, short_length
from peftkit.generation.settings import Settings
from peftkit.generation.single import Single, Text
from peftkit.generation.stopping import Stopping

REFILL = 0.25
"""Prompts enter once so much of the batch is free: they are read together, and each reading is a step of its own."""
SEEN = 4
"""Batches of waiting prompts among which those of one length are looked for."""
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
    model: Any,
    tokenizer: Any,
    threads: Iterable[Thread],
    settings: Settings,
    *,
    batch_size: int = 32,
    caching: Caching | None = None,
) -> Caching | None:
    """Answer every prompt of every thread; `batch_size` prompts are decoded together.

    A thread's next prompt keeps what it has in common with the one before in the cache. A prompt is as many tokens as
    fit the context with `max_new_tokens` more; it is not empty. Returns how the model is cached, for the next call;
    it is found out where `caching` is not given.
    """
    stopping = Stopping.of(model, tokenizer, settings)
    search = Beams(settings, stopping) if settings.num_beams > 1 else Single(settings, stopping)
    with inference(model):
        waiting = [Waiting(thread, Text(*next(thread))) for thread in threads]
        if waiting and caching is None:
            caching = choose(model, [item.text.prompt for item in waiting], search.copies)
        beyond = short_length(model.config)

        def scale(item: Waiting) -> RopeScale:
            return scale_of(len(item.text.prompt), settings.max_new_tokens, beyond)

        while waiting and caching is not None:
            # A batch is of one scale, since its longest row decides.
            own = scale(waiting[0])
            way = whole_texts(model) if own is RopeScale.BOTH else caching
            fit, rest = [[item for item in waiting if (scale(item) is own) is fits] for fits in (True, False)]
            decoding = Decoding(way, search, stopping, fit, batch_size, lambda item, own=own: scale(item) is own)
            decoding.run()
            waiting = rest + decoding.others
    return caching


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
        self,
        caching: Caching,
        search: Single | Beams,
        stopping: Stopping,
        waiting: Sequence[Waiting],
        batch_size: int,
        fits: Callable[[Waiting], bool],
    ):
        self.caching, self.search, self.stopping, self.fits = caching, search, stopping, fits
        self.others: list[Waiting] = []
        """Prompts that follow and do not fit to these ones."""
        self.batch_size = min(batch_size, caching.most or batch_size)
        self.waiting = deque(sorted(waiting, key=lambda item: (-len(item.text.prompt), item.text.number)))
        self.live: list[Waiting] = []
        self.cache = caching.make(0, 0)
        self.device = self.cache.ids.device
        self.tokens = torch.empty(0, dtype=torch.long, device=self.device)
        """The last token of every row, which the model has not read."""

    def run(self) -> None:
        """Decode until nothing waits and nothing lives."""
        self._share()
        while self.waiting or self.live:
            free = self.batch_size - len(self.live)
            refills = self.caching.refills and free >= max(1, REFILL * self.batch_size)
            if self.waiting and (not self.live or refills):
                self._admit(self._next(free))
            else:
                self._step()

    def _next(self, free: int) -> list[Waiting]:
        """Take at most `free` prompts; where no others can join them, those of one length among the next ones."""
        if self.caching.refills:
            return [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        seen = [self.waiting.popleft() for _ in range(min(SEEN * free, len(self.waiting)))]
        fit = [item for item in seen if len(item.text.prompt) == len(seen[0].text.prompt)][:free]
        taken = set(map(id, fit))
        self.waiting.extendleft(item for item in reversed(seen) if id(item) not in taken)
        return fit

    def _step(self) -> None:
        """Read the last token of every row, and choose the next."""
        logits = self.cache.read(self.tokens[:, None], torch.zeros_like(self.tokens))
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
            self.cache = self.caching.make(min(self.batch_size, len(items) + len(self.waiting)) * copies, 0)
        rows, groups, logits = self.cache.rows, [], []
        for group in self.caching.together([len(item.text.prompt) for item in items]):
            groups += [items[index] for index in group]
            cache, ends, after = self._read([items[index] for index in group])
            self.cache.append(cache, ends, copies)
            logits.append(after.repeat_interleave(copies, 0))
            del cache
        choice = self.search.advance([item.text for item in groups], torch.cat(logits), self.cache.live_ids()[rows:])
        self.tokens = torch.cat([self.tokens, choice.tokens])
        self.live += groups
        for item in groups:
            item.past = None  # its memory is free once nobody waits for it
        self._settle([False] * old + choice.done)

    def _read(self, items: Sequence[Waiting]) -> tuple[Any, Tensor, Tensor]:
        """Return a cache with the prompts, where each one ends in it, and the logits after each."""
        return self.caching.read([item.text.prompt for item in items], [(item.past, item.known) for item in items])

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
        waiting = Waiting(item.thread, text)
        if not self.fits(waiting):
            self.others.append(waiting)
            return
        if not self.caching.apart:
            waiting.past = self.cache.past(slot * self.search.copies, common(item.text.prompt, text.prompt))
        self.waiting.appendleft(waiting)

    def _rows(self, slots: Sequence[int]) -> Tensor:
        """Return the rows of these texts."""
        first = torch.tensor(slots, device=self.device)[:, None] * self.search.copies
        return (first + torch.arange(self.search.copies, device=self.device)).flatten()

    def _share(self) -> None:
        """Compute once what all waiting prompts begin with."""
        prompts = [item.text.prompt for item in self.waiting]
        if len(prompts) < 2 or not self.caching.mixed or self.caching.apart:
            return
        length = min(common(min(prompts), max(prompts)), *(len(prompt) - 1 for prompt in prompts))
        shared = Waiting(self.waiting[0].thread, Text(0, prompts[0][:length]))
        if length >= SHARED and self.fits(shared):
            cache, _, _ = self._read([shared])
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
