"""Forward and backward passes that are recorded once as a CUDA graph and played again, without Python between kernels.

A small model or a small batch keeps a GPU waiting for the host, which has thousands of kernels to start in a step. What
is recorded are the passes over micro-batches of one shape (`peftkit.engine.steady`); the kernels and their inputs are
the same, and so are losses and gradients. The first recording is compared with the passes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftkit.engine.steady import Steady, steady
from peftkit.method import Method
from peftkit.training.rungs import Rung

if TYPE_CHECKING:
    from peftkit.engine.packed_batch import PackedBatch
    from peftkit.training.loop import Loop

MOST = 64
"""Shapes that are recorded at most; others run as they are."""
FAR = 1e-3
"""How far a played loss or gradient may be from the one computed, relative to it: the kernels are the same."""


@dataclass
class Recorded:
    """The passes over one shape: `play` reads `inputs` and adds to the gradients and to `loss`."""

    inputs: Steady
    trained: Tensor
    """The trained tokens of the step, by which the loss is divided."""
    loss: Tensor
    play: Callable[[], None]


class Recorder:
    """Records work on a GPU; all recordings share memory, as one of them plays at a time, and a stream."""

    def __init__(self) -> None:
        self.pool: Any = None
        self.stream: Any = None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` starts and return what plays it; before the first recording the work is done once.

        Libraries set themselves up on a stream in ways that cannot be recorded.
        """
        if self.stream is None:
            self.stream = torch.cuda.Stream()
            torch.cuda.empty_cache()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                work()
            torch.cuda.current_stream().wait_stream(self.stream)
        # What is kept for reuse goes back to the device: a recording has memory of its own.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        self.pool = graph.pool()
        return graph.replay


class Replays:
    """Runs the passes of a loop, recorded from the second micro-batch on.

    Only for loops that `possible` allows. What the methods keep outside of tensors must not change from step to step.
    """

    def __init__(self, loop: Loop):
        self.loop = loop
        self.recorded: dict[tuple[Any, ...], Recorded] = {}
        self.begun = self.sound = False
        """Whether a micro-batch has been computed, and a recording has been compared."""
        self.grads: dict[nn.Parameter, Tensor] = {}
        """Where recorded passes add gradients; the same tensors in all of them."""
        self.rung: Rung = loop.ladder.rung
        self.recorder = Recorder()
        self.off = self.full = False
        """Whether nothing is recorded, and whether it has been told that nothing more is."""
        self.tell: Callable[[str], None] = lambda text: None

    @classmethod
    def of(cls, loop: Loop, tell: Callable[[str], None]) -> Replays | None:
        """Return what runs the passes of a loop; None where the recipe says no, or `possible`, whose reason is told."""
        if not loop.section.cuda_graphs:
            return None
        found, why = cls(loop), possible(loop)
        found.tell = tell
        if why is None:
            return found
        found.tell_off(why)
        return None

    def run(self, laid: PackedBatch, trained: int) -> Tensor | None:
        """Add the gradients of a micro-batch, laid out on the host, and return its loss; None where it cannot."""
        self._follow(self.loop.ladder.rung)
        if self.off or self.rung.recomputed != "nothing" or self.rung.offloaded:
            return None
        filled = steady(laid, self.loop.device)
        if filled is None:
            return None
        begun, self.begun = self.begun, True
        found = self.recorded.get(filled.shape)
        if found is not None:
            return self._play(found, filled, trained)
        if not begun or len(self.recorded) == MOST:
            self.full = self.full or self._tell_full(begun)
            return self.loop.passes(filled.laid, trained)
        return self._record(filled, trained) if self.sound else self._compare(filled, trained)

    def _tell_full(self, begun: bool) -> bool:
        if begun:
            self.tell(f"train.cuda_graphs: {MOST} shapes of micro-batches are recorded, and others run as they are.")
        return begun

    def _follow(self, rung: Rung) -> None:
        """Forget what was recorded on another rung of the memory ladder."""
        if rung != self.rung:
            self.rung = rung
            self.recorded.clear()

    def _play(self, found: Recorded, given: Steady, trained: int) -> Tensor:
        found.inputs.copy_from(given)
        found.trained.fill_(trained)
        self._take_gradients()
        found.play()
        return found.loss.clone()

    def _take_gradients(self) -> None:
        """Let recorded passes add to what the parameters have already."""
        fresh = [grad for parameter, grad in self.grads.items() if parameter.grad is None]
        if fresh:
            torch._foreach_zero_(fresh)
        for parameter, grad in self.grads.items():
            if parameter.grad is not None and parameter.grad is not grad:
                grad.copy_(parameter.grad)
            parameter.grad = grad

    def _record(self, given: Steady, trained: int) -> Tensor:
        """Record the passes over another shape and play them."""
        random = self.loop.random_state()
        try:
            found = self.recorded[given.shape] = self._recording(given.clone())
        except Exception as error:  # a pass that cannot be recorded fails in every way
            self.loop.set_random_state(random)
            self._give_up(_cause(error))
            return self.loop.passes(given.laid, trained)
        self.loop.set_random_state(random)
        return self._play(found, given, trained)

    def _compare(self, given: Steady, trained: int) -> Tensor:
        """Compute a micro-batch as it is, record its passes, and compare what they give with what was computed."""
        loop = self.loop
        before, random = _kept(loop.parameters), loop.random_state()
        loss = loop.passes(given.laid, trained)
        expected, after = _kept(loop.parameters), loop.random_state()
        if not torch.equal(random["cpu"], after["cpu"]):
            self._give_up("the method draws random numbers on the host")
            return loss
        for parameter in loop.parameters:
            if parameter.grad is not None:
                self.grads[parameter] = torch.zeros_like(parameter.grad)
        _put(loop.parameters, before)
        loop.set_random_state(random)
        played = self._record(given, trained)
        found = _kept(loop.parameters)
        self.sound = not self.off and not _far([loss, *_given(expected)], [played, *_given(found)])
        _put(loop.parameters, expected)
        loop.set_random_state(after)
        if not self.off and not self.sound:
            self._give_up("what is played differs from what is computed")
        return loss

    def _recording(self, inputs: Steady) -> Recorded:
        device = self.loop.device
        trained, loss = torch.ones((), device=device), torch.zeros((), device=device)
        parameters = list(self.grads)

        def work() -> None:
            value, found = self.loop.gradients(inputs.laid, trained, parameters)
            torch._foreach_add_(list(self.grads.values()), list(found))
            loss.copy_(value)

        # Memory that the head uses again would be played into when something else stands there.
        self.loop.engine.release()
        play = self.recorder.record(work)
        self.loop.engine.release()
        return Recorded(inputs, trained, loss, play)

    def _give_up(self, why: str) -> None:
        self.off = True
        self.recorded.clear()
        self.grads.clear()
        self.recorder = Recorder()
        self.tell_off(why)

    def tell_off(self, why: str) -> None:
        """Tell why nothing is recorded."""
        self.tell(f"train.cuda_graphs: steps run as without it, since {why}.")


def possible(loop: Loop) -> str | None:
    """Say why the passes of a loop cannot be recorded, as far as is told without running; None where they may."""
    if loop.device.type != "cuda":
        return "the device is no GPU"
    if not loop.engine.arrangement.flat:
        return "examples are padded"
    hooks = ("after_step", "after_backward", "penalty", "finish")
    changing = [m.name for m in loop.adaptation.methods if any(_own(m, hook) for hook in hooks)]
    return f"{changing[0]} changes with the steps" if changing else None


def _own(method: Method, hook: str) -> bool:
    return getattr(type(method), hook) is not getattr(Method, hook)


def _cause(error: BaseException) -> str:
    """Say what was raised first: the end of a recording that failed raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _kept(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]


def _put(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = None if grad is None else grad.clone()


def _given(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def _far(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Say whether some tensor is not what is expected; one that is not a number never is."""
    if len(expected) != len(found):
        return True
    apart = [(a.float() - b.float()).norm() - FAR * b.float().norm() for a, b in zip(found, expected, strict=True)]
    return not bool((torch.stack(apart) <= 1e-12).all())
