"""What tests of single methods share: token ids, and adapters moved from their start."""

from __future__ import annotations

import torch

from peftkit.adaptation import Adaptation

IDS = torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(0))


def moved(adaptation: Adaptation, scale: float = 0.1) -> Adaptation:
    """Move every trained tensor by noise that follows from its place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return adaptation
