"""Passes whose blocks are compiled one by one for training; what the compiler cannot do runs as it is.

Each block is compiled by itself, as the code is then the same for all of them, and for any number of tokens. Attention
along trees stays outside (`peftkit.ports.attention`). Whatever is not a training step runs the model's own code.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes, Result, Wrapper
from peftkit.engine.snapshot import Snapshot, snapshot
from peftkit.errors import PeftkitError
from peftkit.layout import Layout

COMPILER: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}
"""Dropout draws the numbers that it draws without a compiler."""
KINDS = 16
"""Variants of one piece of code that are compiled, such as blocks with and without adapters, before it is given up."""


class Compiled(Wrapper):
    """The inner passes while the blocks of their model are compiled: from `open` to `close`, unless that fails.

    The compiler sees `first`, a micro-batch of the run, before the first step: a resumed run takes the same one, so
    that its code is the same.
    """

    def __init__(self, inner: Passes, first: Callable[[], Batch], notice: Callable[[str], None] = lambda text: None):
        super().__init__(inner)
        self.first, self.notice = first, notice
        self.blocks: list[nn.Module] = []
        """Those that are compiled."""

    def open(self) -> None:
        """Compile, and tell how long it took; neither the state of the run nor what it draws is touched."""
        self.inner.open()
        engine = self.plain.engine
        blocks = [engine.model.get_submodule(path) for path in Layout(engine.model).blocks]
        if not blocks:
            self.notice("train.compile: no blocks are found in this model, and nothing is compiled.")
            return
        started = time.monotonic()
        torch.compiler.reset()
        run = torch.compile(_forward, dynamic=True, **COMPILER)
        for block in blocks:
            cast(Any, block).forward = _InSteps(block, run)
        self.blocks, engine.compiled = blocks, True
        with snapshot(self.plain.device, self.plain.parameters):
            batch = self.first()
            self.backward([batch], max(1, batch.trained))
        if self.blocks:
            self.notice(f"train.compile: {len(blocks)} blocks compiled in {time.monotonic() - started:.0f} s.")

    def backward(self, batches: Sequence[Batch], normaliser: int) -> Result:
        """Add gradients, compiled.

        Where that fails for anything but want of memory, it is done once more without a compiler as if nothing had
        been, and so are all steps that follow. What fails then too is raised.
        """
        if not self.blocks:
            return self.inner.backward(batches, normaliser)
        before = Snapshot(self.plain.device, self.plain.parameters)
        try:
            limit = torch._dynamo.config.patch(recompile_limit=KINDS, fail_on_recompile_limit_hit=True)
            with limit, warnings.catch_warnings():
                # Answers of cached functions do not change.
                warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
                return self.inner.backward(batches, normaliser)
        except PeftkitError:
            raise
        except Exception as error:
            why = _described(error)
        self._stop()
        before.restore()
        done = self.inner.backward(batches, normaliser)
        self.notice(f"train.compile: the blocks cannot be compiled and run as they are: {why}")
        return done

    def close(self) -> None:
        """Give the blocks their own code back."""
        if self.blocks:
            self._stop()
        super().close()

    def _stop(self) -> None:
        """Give the blocks their own code back, and the memory that holds the compiled one."""
        for block in self.blocks:
            block.__dict__.pop("forward", None)
        self.blocks = []
        self.plain.engine.compiled = False
        torch.compiler.reset()


class _InSteps:
    """In the place of a block's forward: compiled in training steps, and the same at any other time."""

    def __init__(self, block: nn.Module, run: Callable[..., Any]):
        self.block, self.run = block, run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wanted = self.block.training and torch.is_grad_enabled()
        return (self.run if wanted else _forward)(self.block, *args, **kwargs)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # By its class, which a module changes when adapters sit down on it.
    return type(block).forward(block, *args, **kwargs)


def _described(error: Exception) -> str:
    """Return the kind of an error and the first lines that say something: one that ends in a colon says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((number for number, line in enumerate(lines) if not line.endswith(":")), 0)
    return f"{type(error).__name__}: {' '.join(lines[: end + 1])[:300]}"
