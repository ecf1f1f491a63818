"""The learning rate of each step as a fraction of its peak: a pure function, so that a resumed run needs no state."""

from __future__ import annotations

import math

from peftkit.errors import PeftkitError, unknown


def cosine(progress: float) -> float:
    """Fall from 1 to 0 along half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Fall from 1 to 0 along a straight line."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """Stay at 1."""
    return 1.0


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}


def warmup_steps(warmup: float, steps: int) -> int:
    """Count the warm-up steps: `warmup` is a fraction of all `steps` below 1, and a number of steps from 1 on."""
    return min(steps, round(warmup * steps) if warmup < 1 else int(warmup))


def scale(schedule: str, step: int, steps: int, warmup: float) -> float:
    """Return the factor in [0, 1] on the peak learning rate at `step` of 0 … `steps` - 1.

    The warm-up of w steps climbs by 1 / (w + 1) a step, so the first step already learns and step w is the first at
    the peak; the rest falls with (step - w) / (steps - w), which reaches 0 only after the last step.
    """
    if schedule not in SCHEDULES:
        raise PeftkitError("train.schedule: " + unknown("schedule", schedule, SCHEDULES))
    rising = warmup_steps(warmup, steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    return SCHEDULES[schedule]((step - rising) / max(1, steps - rising))
