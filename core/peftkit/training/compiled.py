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
    from peftkit.training.loop import Begun, Loop

COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
"""Dropout draws the numbers that it draws without a compiler."""
KINDS = 16
"""Variants of one piece of code that are compiled, such as blocks with and without adapters, before it is given up."""


class CompiledBlocks:
    """The blocks of `model` while they are compiled: between `begin` and `stop`, unless the compiler fails."""

    def __init__(self, model: nn.Module, tell: Callable[[str], None] = lambda text: None):
        self.tell = tell
        """Receives what a person should know."""
        self.blocks = [model.get_submodule(path) for path in Layout(model).blocks]

    def begin(self, loop: Loop) -> None:
        """Compile, on the first micro-batch of the run's first epoch, and tell how long it took.

        A resumed run takes the same one, so that its code is the same. Neither the state of the run nor what it draws
        is touched.
        """
        from peftkit.training.loop import Begun

        if not self.blocks:
            self.tell("train.compile: no blocks are found in this model, and nothing is compiled.")
            return
        torch.compiler.reset()
        run = torch.compile(_forward, dynamic=True, **COMPILER)
        for block in self.blocks:
            cast(Any, block).forward = _InSteps(block, run)
        batches, started, random = cast("Batches", loop.batches), time.monotonic(), loop.random_state()
        batch = batches.collate(batches.plan(0)[0], loop.pad_id)
        self.attempt(loop, Begun(Window([], loop.position, 0.0), [batch], 0.0, started, []))
        loop.optimizer.zero_grad(set_to_none=True)
        loop.set_random_state(random)
        if self.blocks:
            self.tell(f"train.compile: {len(self.blocks)} blocks compiled in {time.monotonic() - started:.0f} s.")

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
