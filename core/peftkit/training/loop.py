"""The training loop: one call is one optimizer step, and the state between calls is all that a checkpoint needs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from peftkit.device import autocast, mixes, peak_memory
from peftkit.engine.engine import Arrangement, Engine
from peftkit.errors import PeftkitError
from peftkit.optim.build import Optimizers
from peftkit.training.counts import Counts, counts, total
from peftkit.training.memory import Ladder, OutOfMemory
from peftkit.training.rungs import Rung
from peftkit.training.schedule import scale
from peftkit.training.windows import Planned, Position, Window, count_steps, windows

if TYPE_CHECKING:
    from peftkit.adaptation import Adaptation
    from peftkit.recipe import TrainSection
    from peftkit.training.compiled import CompiledBlocks
    from peftkit.training.rate import Meter
    from peftkit.training.replays import Replays


class Diverged(PeftkitError):  # noqa: N818
    """The loss or the gradient of a step is not finite; the step has changed nothing."""


class Begun(NamedTuple):
    """An optimizer step whose gradients are still to be found."""

    window: Window
    batches: list[Any]
    """The micro-batches, collated."""
    rate: float
    """The learning rate of the first group."""
    started: float
    counted: list[Counts]
    """Of the micro-batches that have been laid out."""


class Loop:
    """Trains an adaptation of `model` on `batches`: windows of micro-batches, clipping, schedule, optimizers.

    The loss of a window is the sum of its token cross-entropies over the number of its trained tokens, so that k
    micro-batches of b examples give the gradient of one of k·b. `step` counts the optimizer steps done.
    """

    def __init__(
        self,
        model: nn.Module,
        adaptation: Adaptation,
        batches: Planned,
        section: TrainSection,
        *,
        pad_id: int,
        device: torch.device,
        precision: str = "fp32",
        engine: Engine | None = None,
        ladder: Ladder | None = None,
    ):
        self.ladder = ladder or Ladder(None, [Rung()])
        self.engine = engine or Engine(model, Arrangement(flat=False))
        self.model, self.adaptation, self.batches, self.section = model, adaptation, batches, section
        self.pad_id, self.device, self.precision = pad_id, device, precision
        self.casts = precision if mixes(model) else "fp32"
        """What autocast is asked for: nothing where the weights are held in what is computed in."""
        self.steps = count_steps(batches, section.accumulation, section.epochs, section.max_steps)
        self.step = 0
        self.position = Position()
        groups = adaptation.groups(section.learning_rate, section.weight_decay)
        self.optimizer = Optimizers(groups, betas=section.betas, eps=section.eps, default=section.optimizer)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self._windows = None
        self.compiled: CompiledBlocks | None = None
        self.settled: bool | None = None
        """Whether the run of a checkpoint was compiled, where its recipe left that open."""
        self.meter: Meter | None = None
        """What the utilisation is told by; without one it is not."""
        self.replays: Replays | None = None
        """What runs the passes where they are recorded; without it they all run as they are."""

    def run_step(self) -> dict[str, Any]:
        """Do one optimizer step and return its record; a loss or gradient that is not finite is a PeftkitError."""
        begun = self.begin_step()
        record = self.end_step(begun, (self.compiled or self.ladder).attempt(self, begun))
        return record if self.section.memory is None else {**record, "rung": str(self.ladder.rung)}

    def begin_step(self) -> Begun:
        """Set the learning rate of the next optimizer step and collate its micro-batches."""
        started = time.perf_counter()
        if self._windows is None:
            self._windows = windows(self.batches, self.section.accumulation, self.position)
        window = next(self._windows)
        factor = scale(self.section.schedule, self.step, self.steps, self.section.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        batches = [self.batches.collate(indices, self.pad_id) for indices in window.batches]
        return Begun(window, batches, self.peaks[0] * factor, started, [])

    def lay(self, begun: Begun, batch: Any) -> Any:
        """Lay a micro-batch of a step, or a piece of one, out on the device, and count what is computed of it."""
        return self._lay(begun, batch).to(self.device)

    def _lay(self, begun: Begun, batch: Any) -> Any:
        laid = self.engine.lay(batch)
        begun.counted.append(counts(batch, laid))
        return laid

    def end_step(self, begun: Begun, loss: float) -> dict[str, Any]:
        """Take the step whose gradients are there, `loss` per trained token; returns its record.

        Raises Diverged, before anything changes, for a loss or gradient that is not finite.
        """
        self.adaptation.after_backward(self.step, self.steps)
        norm = self._clip()
        self.check(loss, norm, begun.rate)
        self.optimizer.step()
        self.adaptation.after_step(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.position = begun.window.after
        return self._record(begun, loss, norm)

    def _record(self, begun: Begun, loss: float, norm: float) -> dict[str, Any]:
        """Return what the log tells of a step that is done."""
        tokens, trained = (sum(getattr(b, name) for b in begun.batches) for name in ("tokens", "trained"))
        counted, seconds = total(begun.counted), time.perf_counter() - begun.started
        used = {} if self.meter is None else {"utilisation": round(self.meter.utilisation(counted, seconds), 4)}
        return {
            "step": self.step,
            "epoch": round(begun.window.epochs, 6),
            "loss": loss,
            "lr": begun.rate,
            "grad_norm": norm,
            "tokens": tokens,
            "trained_tokens": trained,
            "computed_tokens": counted.computed,
            "padding_tokens_saved": counted.padding_saved,
            "shared_tokens_saved": counted.shared_saved,
            "tokens_per_s": round(tokens / seconds, 1),
            "trained_tokens_per_s": round(trained / seconds, 1),
            **used,
            "memory": peak_memory(self.device),
        }

    def evaluate(self, batches: Planned, count: int | None = None) -> float:
        """Measure the mean cross-entropy per trained token over the first `count` batches of `batches`, unsmoothed."""
        total, trained = 0.0, 0
        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.casts):
            planned = batches.plan(0)[:count]
            for batch in self._pieces(batches.collate(indices, self.pad_id) for indices in planned):
                laid = self.engine.lay(batch).to(self.device)
                with self.engine.running(laid):
                    total += self.engine.loss(laid, self.device).item()
                trained += batch.trained
        self.model.train()
        return total / max(1, trained)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return what a checkpoint holds: tensors by part (adapter, optimizer, random) and plain facts."""
        tensors, plain = {}, {}
        for path, value in self.optimizer.state().items():
            (tensors if isinstance(value, Tensor) else plain)[path] = value
        parts = {"adapter": self.adaptation.state(), "optimizer": tensors, "random": self.random_state()}
        facts = {"step": self.step, "epoch": self.position.epoch, "batch": self.position.batch, "optimizer": plain}
        if self.section.compile == "auto":
            facts["compiled"] = self.compiled is not None and bool(self.compiled.blocks)
        return parts, facts if self.section.memory is None else {**facts, "rung": self.ladder.rung.as_dict()}

    def load_state(self, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.adaptation.load_state(parts["adapter"])
        self.optimizer.load_state({**parts["optimizer"], **facts["optimizer"]})
        self.step, self.position = facts["step"], Position(facts["epoch"], facts["batch"])
        self._windows = None
        self.set_random_state(parts["random"])
        self.settled = facts.get("compiled")
        if "rung" in facts:
            self.ladder.resume(self.model, Rung(**facts["rung"]))

    def random_state(self) -> dict[str, Tensor]:
        """Return the state of what draws random numbers, by kind of device."""
        random: dict[str, Tensor] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        return random

    def set_random_state(self, random: Mapping[str, Tensor]) -> None:
        """Draw on from what `random_state` returned."""
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)

    def _pieces(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Iterate over what is computed at once, on the rung of the memory ladder."""
        return (piece for batch in batches for piece in self.ladder.rung.pieces(batch))

    def accumulate(self, begun: Begun) -> float:
        """Run forward and backward over a window; return its loss per trained token.

        Raises OutOfMemory where the device has too little for it.
        """
        batches = list(self._pieces(begun.batches))
        begun.counted.clear()
        trained = max(1, sum(batch.trained for batch in batches))
        total = torch.zeros((), device=self.device)
        self.model.train()
        try:
            for batch in batches:
                laid = self._lay(begun, batch)
                loss = None if self.replays is None else self.replays.run(laid, trained)
                total += self.passes(laid.to(self.device), trained) if loss is None else loss
            penalty = self.adaptation.penalty()
            if penalty is not None:
                penalty.backward()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            rows, width = max((tuple(batch.input_ids.shape) for batch in batches), key=math.prod)
            raise OutOfMemory(self.step + 1, (rows, width), self.ladder.advice) from None
        return total.item() / trained

    def passes(self, laid: Any, trained: int) -> Tensor:
        """Add the gradients of a micro-batch on the device, divided by `trained`; return the sum of its losses."""
        with self.engine.running(laid):
            loss = self._loss(laid)
            (loss / trained).backward()
        self.engine.forget()
        return loss.detach()

    def gradients(self, laid: Any, trained: Tensor, wanted: Sequence[nn.Parameter]) -> tuple[Tensor, Sequence[Tensor]]:
        """Return what `passes` does and the gradients that it adds to the `wanted` parameters; nothing is changed."""
        with self.engine.running(laid):
            loss = self._loss(laid, cached=False)
            found = torch.autograd.grad(loss / trained, wanted)
        self.engine.forget()
        return loss.detach(), found

    def _loss(self, laid: Any, cached: bool = True) -> Tensor:
        with autocast(self.device, self.casts, cached), self.ladder.rung.keeping(self.device):
            return self.engine.loss(laid, self.device, self.section.label_smoothing)

    def _clip(self) -> float:
        """Clip the gradients in place where the recipe says so; return their norm before."""
        if self.section.clip is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.section.clip).item()
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]).item()

    def check(self, loss: float, norm: float, rate: float) -> None:
        """Raise Diverged for a loss or gradient norm that is not finite."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        subject = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise Diverged(
            f"{subject} at step {self.step + 1} of {self.steps} (learning rate {rate:.3g}): the run stops before this "
            "step changes anything, and the last checkpoint stays as it was. Try a lower train.learning_rate, a longer "
            "train.warmup, a smaller train.clip, or train.precision=fp32."
        )


def out_of_memory(error: RuntimeError) -> bool:
    """Say whether the error is torch's for want of memory; on the CPU only its text tells."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
