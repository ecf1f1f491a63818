"""Starts of LoRA that change the base when a folder of Hugging Face peft is opened, and what they take out of it.

Version 0.21 runs the start of `init_lora_weights` on the base at every opening, then loads A and B. What depends on the
weight alone is found here as there; the product that is taken out has no choice of signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.quantization.weight import dense

Pair = tuple[Tensor, Tensor]


def _principal(weight: Tensor, rank: int, scale: float) -> Pair:
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return right[:rank], left[:, :rank] * values[:rank]


def _orthonormal(weight: Tensor, rank: int, scale: float) -> Pair:
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank] * scale


MOVED: dict[str, Callable[[Tensor, int, float], Pair]] = {"pissa": _principal, "olora": _orthonormal}
"""By the name, which ours is too: from W [out, in], the rank and the scale s to A0 [rank, in] and s B0 [out, rank]."""
STILL = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Starts that leave the base as it is: the trained A and B take their place."""


def moved(config: Mapping[str, Any]) -> str | None:
    """Return the start that changes the base, or None; PeftkitError for one that cannot be found again."""
    start = config.get("init_lora_weights")
    name = start.lower() if isinstance(start, str) else start
    if name in STILL:
        return None
    if name not in MOVED:
        raise PeftkitError(
            f"adapter_config.json: init_lora_weights is {start!r}, with which the adapter stands on another base than "
            "the model that it names, one that its folder does not tell. Write it as an adapter of the model as it is, "
            "by save_pretrained(…, path_initial_model_for_weight_conversion=…) of Hugging Face peft."
        )
    if config.get("use_dora"):
        raise PeftkitError(f"adapter_config.json: init_lora_weights is {start!r} with use_dora, and that is not read.")
    return name


def taken_out(start: str, path: str, module: nn.Module, rank: int, scale: float) -> dict[str, Tensor]:
    """Return the pair that a start takes out of a module's weight, as `LowRank` keeps it."""
    if start == "olora" and not isinstance(module, nn.Linear):
        raise PeftkitError(
            f"adapter_config.json: init_lora_weights is 'olora', and the weight of {path} lies transposed, which that "
            "library does not heed: the adapter stands on a base that is not meant."
        )
    down, up = MOVED[start](dense(module).detach().float(), rank, scale)
    return {f"{path}/A0": down.contiguous(), f"{path}/B0": up.contiguous()}
