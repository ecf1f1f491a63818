"""What becomes of pruned weights where an adapter is merged into them, and what it is that a merged folder says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.export.trained import Trained
from peftkit.models.prune import apply, filled
from peftkit.models.samples import logits

NOTE = "peftkit_pruning"
"""The key of a merged model's config.json."""


def check_whole(trained: Trained, form: str) -> None:
    """Refuse a form that is opened beside the original weights, which are not those of a pruned base."""
    if trained.masks:
        raise PeftkitError(
            f"--format {form}: the adapter stands on a pruned base, and what is written would be opened on the whole "
            "one: choose merged."
        )


def check_pruned(trained: Trained, keep_zeros: bool) -> None:
    """Refuse to keep zeros where nothing is pruned."""
    if keep_zeros and not trained.masks:
        raise PeftkitError("--keep-zeros is for a run on a pruned base, and nothing of this one is: leave it out.")


def settle_zeros(trained: Trained, expected: Tensor, keep_zeros: bool) -> tuple[Tensor, dict[str, Any]]:
    """Count the pruned weights that a merged adapter has filled, or set them to zero again.

    Its weights are plain ones. Returns the logits that are expected of the model now, and what the report says of it:
    with `keep_zeros` how far they are from `expected`, those of the model as it was trained. config.json will say it.
    """
    if not trained.masks:
        return expected, {}
    found = filled(trained.module, trained.masks)
    report: dict[str, Any] = {"pruned_weights": _pruned(trained), "filled_weights": 0 if keep_zeros else found}
    if keep_zeros:
        apply(trained.module, trained.masks)
        kept = logits(trained.model, trained.tokenizer, trained.adaptation.soft_ids)
        report |= {"zeroed_weights": found, "zeroed_max_difference": float((kept - expected).abs().max())}
        expected = kept
    note = {**trained.storage["pruning"], "filled_weights": report["filled_weights"]}
    setattr(cast(Any, trained.model.config), NOTE, note)
    return expected, report


def zeroed(
    again: Callable[[], Trained], plainly: Callable[[Trained], object] = lambda trained: None
) -> Callable[[], Trained]:
    """Return what opens a run once more and merges it, its pruned weights set to zero; `plainly` unpacks it before."""

    def open_zeroed() -> Trained:
        trained = again()
        trained.adaptation.merge_(keep_base=False)
        plainly(trained)
        apply(trained.module, trained.masks)
        return trained

    return open_zeroed


def _pruned(trained: Trained) -> int:
    count = 0
    for path, mask in trained.masks.items():
        module = trained.module.get_submodule(path)
        bits = sum(int((mask >> place & 1).sum(dtype=torch.int64)) for place in range(8))
        count += cast(Any, module).weight.numel() - bits
    return count
