"""Sample prompts on which two models are compared by their logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.data.encode import opening
from peftkit.errors import PeftkitError

TEXTS = (
    "name[Blue Spice], eatType[coffee shop], area[city centre]",
    "The quick brown fox jumps over the lazy dog, and then it rests for a while.",
    "Question: Tom has 3 boxes with 12 pens each. How many pens does he have?\nAnswer:",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Zwölf Grüße: 你好, здравствуй, γειά σου!",
)
LENGTH = 48


def logits(model: nn.Module, tokenizer: Any, soft: Sequence[int] = ()) -> Tensor:
    """Return the fp32 logits [tokens, vocabulary] of the first 48 tokens of each sample text, run one by one.

    The ids `soft` of a soft prompt stand behind a beginning-of-sequence token; their own logits are left out.
    """
    first, length = len(opening(tokenizer)), len(soft)
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer(text, add_special_tokens=True)["input_ids"][:LENGTH]
            if ids:
                batch = torch.tensor([[*ids[:first], *soft, *ids[first:]]], device=device)
                row = model(input_ids=batch, use_cache=False).logits[0].float().cpu()
                rows += [row[:first], row[first + length :]]
    return torch.cat(rows)


def compare(written: Tensor, trained: Tensor, bound: float, what: str) -> dict[str, float]:
    """Return the largest difference between two sets of logits, with their scale and the bound it keeps.

    Raises PeftkitError where the difference exceeds `bound` times the largest logit, or is not finite.
    """
    difference, scale = float((written - trained).abs().max()), float(trained.abs().max())
    if not difference <= bound * scale:
        raise PeftkitError(
            f"{what}: its logits differ from the trained model's by up to {difference:.3g} on sample prompts, and "
            f"{bound * scale:.3g} ({bound:g} of the largest logit) is allowed: nothing was written."
        )
    return {"max_difference": difference, "scale": scale, "bound": bound * scale}
