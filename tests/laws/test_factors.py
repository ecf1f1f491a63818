"""An adapter that names two factors depends on their product alone: another basis of the rank changes nothing."""

from __future__ import annotations

import pytest
import torch
from subjects import attached, logits, randomise


def test_another_basis_of_the_rank_changes_nothing(name, position, architecture):
    model, adaptation = attached(name, position, architecture)
    held = dict(adaptation.parameters())
    pairs = [pair for number, part in enumerate(adaptation.parts) for pair in _pairs(str(number), part.factors())]
    trained = [(held[down], held[up]) for down, up in pairs if down in held and up in held]
    if not trained:
        pytest.skip("it has no pair of factors that are both trained")
    randomise(adaptation, scale=0.3)
    model.eval()
    before = logits(model)
    with torch.no_grad():
        for down, up in trained:
            assert up.shape[-1] == down.shape[-2]
            turn = torch.randn(up.shape[-1], up.shape[-1], dtype=torch.float64, generator=torch.Generator()) * 0.3
            turn += torch.eye(len(turn)) * 2
            down.copy_(turn @ down.double())
            up.copy_(up.double() @ torch.linalg.inv(turn))
    assert (logits(model) - before).abs().max() <= 1e-4 * max(1.0, before.abs().max().item())


def _pairs(position: str, factors: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{position}/{down}", f"{position}/{up}") for down, up in factors]
