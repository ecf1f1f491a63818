"""AlphaTuning trains the first scale of binary codes (Kwon et al. 2022, arXiv:2210.03858)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from peftkit.methods.peqa import PEQA
from peftkit.quantization.weight import BINARY


@dataclass(frozen=True, kw_only=True)
class AlphaTuning(PEQA, name="alphatuning"):
    """W = (a_1 + d) b_1 + a_2 b_2 + ... with d [out, groups] trained from zero; signs and further scales are frozen.

    One scale an output as in the paper, unless the storage has a `group_size`. Scales of one group a row are vectors,
    which the paper trains without weight decay.
    """

    paper: ClassVar[str] = "Kwon et al. 2022, arXiv:2210.03858"
    summary: ClassVar[str] = (
        "Trains the first scale of each output of a base whose weights are stored as binary codes. It merges into that "
        "scale, so that the model stays as small as it was."
    )
    default_learning_rate: ClassVar[float] = 0.013
    needs: ClassVar[str | None] = BINARY
