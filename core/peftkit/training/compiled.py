"""The blocks of a model compiled one by one for training steps; what the compiler cannot do runs as it is.

Each block is compiled by itself, as the code is then the same for all of them, and for any number of tokens. Attention
along trees stays outside (`peftkit.ports.attention`). Whatever is not a training step runs the model's own code.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.training.windows import Window

if TYPE_CHECKING:
    from peftkit.data.batches import Batches
    from peftkit.engine.engine import Engine
    from peftkit.training.loop import Begun, Loop

COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
"""Dropout draws the numbers that it draws without a compiler."""
WORTH = 1200.0
"""Seconds that the steps of a run have to take for `train.compile: auto` to compile, which takes one or two minutes."""
QUICKER = 0.95
"""What of the time of a pass a compiled one may take at most, for it to stay compiled then."""
TIMED = 3
"""Passes of which the quickest is compared."""
KINDS = 16
"""Variants of one piece of code that are compiled, such as blocks with and without adapters, before it is given up."""


class CompiledBlocks:
    """The blocks of `model` while they are compiled: between `begin` and `stop`, unless the compiler fails."""

    def __init__(self, model: nn.Module, tell: Callable[[str], None] = lambda text: None):
        self.tell = tell
        """Receives what a person should know."""
        self.blocks = [model.get_submodule(path) for path in Layout(model).blocks]
        self.engine: Engine | None = None

    def settle(self, loop: Loop, decided: bool | None = None) -> None:
        """Compile where the run is long enough and its passes are quicker then, or as was `decided` before; tell why.

        What was decided is in `blocks`: they are empty where nothing is compiled.
        """
        plain = None
        if decided is None:
            plain = self._seconds(loop)
            planned = plain * (loop.steps - loop.step) * loop.section.accumulation
            decided = planned >= WORTH
            if not decided:
                self.tell(f"train.compile: the run takes about {planned:.0f} s as it is, and nothing is compiled.")
        if not decided:
            self.blocks = []
            return
        self.begin(loop)
        if plain is not None and self.blocks:
            found = self._seconds(loop)
            left = found <= QUICKER * plain
            if not left:
                self.stop()
            what = "blocks stay compiled" if left else "nothing is compiled"
            self.tell(f"train.compile: a pass takes {found:.3g} s compiled and {plain:.3g} s as it is: {what}.")

    def begin(self, loop: Loop) -> None:
        """Compile, on the first micro-batch of the run's first epoch, and tell how long it took.

        A resumed run takes the same one, so that its code is the same. Neither the state of the run nor what it draws
        is touched.
        """
        if not self.blocks:
            self.tell("train.compile: no blocks are found in this model, and nothing is compiled.")
            return
        started = time.monotonic()
        torch.compiler.reset()
        run = torch.compile(_forward, dynamic=True, **COMPILER)
        for block in self.blocks:
            cast(Any, block).forward = _InSteps(block, run)
        self.engine = loop.engine
        self.engine.compiled = True
        self._pass(loop)
        if self.blocks:
            self.tell(f"train.compile: {len(self.blocks)} blocks compiled in {time.monotonic() - started:.0f} s.")

    def _pass(self, loop: Loop) -> None:
        """Compute the first micro-batch of the first epoch, and leave everything as it was."""
        from peftkit.training.loop import Begun

        batches, random = cast("Batches", loop.batches), loop.random_state()
        batch = batches.collate(batches.plan(0)[0], loop.pad_id)
        self.attempt(loop, Begun(Window([], loop.position, 0.0), [batch], 0.0, time.monotonic(), []))
        loop.optimizer.zero_grad(set_to_none=True)
        loop.set_random_state(random)

    def _seconds(self, loop: Loop) -> float:
        """Return how long that takes, the quickest of a few times."""
        found = []
        for _ in range(TIMED):
            started = time.perf_counter()
            self._pass(loop)
            found.append(time.perf_counter() - started)
        return min(found)

    def attempt(self, loop: Loop, begun: Begun) -> float:
        """Find the gradients of a step, compiled; returns the loss per trained token.

        Where that fails for anything but want of memory, the step is repeated without a compiler as if nothing had
        been, and so are all others. What fails then too is raised.
        """
        if not self.blocks:
            return loop.accumulate(begun)
        random = loop.random_state()
        try:
            with torch._dynamo.config.patch(recompile_limit=KINDS, fail_on_recompile_limit_hit=True), _calm():
                return loop.accumulate(begun)
        except PeftkitError:
            raise
        except Exception as error:
            why = _told(error)
        self.stop()
        loop.optimizer.zero_grad(set_to_none=True)
        loop.set_random_state(random)
        loss = loop.accumulate(begun)
        self.tell(f"train.compile: the blocks cannot be compiled and run as they are: {why}")
        return loss

    def stop(self) -> None:
        """Give the blocks their own code back, and the memory that holds the compiled one."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        self.blocks = []
        if self.engine is not None:
            self.engine.compiled = False
        torch.compiler.reset()


class _InSteps:
    """In the place of a block's forward: compiled in training steps, and the same at any other time."""

    def __init__(self, block: nn.Module, run: Callable[..., Any]):
        self.block, self.run = block, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wanted = self.block.training and torch.is_grad_enabled()
        return (self.run if wanted else _forward)(self.block, *args, **kwargs)


@contextmanager
def _calm() -> Iterator[None]:
    """Keep back what the compiler says of cached functions, whose answers do not change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        yield


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # By its class, which a module changes when adapters sit down on it.
    return type(block).forward(block, *args, **kwargs)


def _told(error: Exception) -> str:
    """Return the kind of an error and the first lines that say something: one that ends in a colon says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), 0)
    return f"{type(error).__name__}: {' '.join(lines[: end + 1])[:300]}"
