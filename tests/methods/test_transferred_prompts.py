"""Prompts that start from those of other runs: the tensor itself, the nearest of several, and through a projector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftkit.adaptation import attach, save_adapter
from peftkit.errors import PeftkitError
from peftkit.methods.lora import LoRA
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.methods.spot import SPoT
from peftkit.methods.transferable_prompt_tuning import TransferablePromptTuning
from peftkit.models.tiny import tiny
from peftkit.trained_prompts import similarity

IDS = torch.tensor([[5, 9, 14, 20, 33]])


def run(folder: Path, seed: int, width: int = 32, length: int = 4, near: torch.Tensor | None = None) -> torch.Tensor:
    """Write an adapter folder with a prompt of its own, and return that."""
    model = tiny("llama", hidden_size=width)
    adaptation = attach(model, [PromptTuning(length=length)])
    ((_, prompt),) = adaptation.parameters()
    with torch.no_grad():
        noise = torch.randn(prompt.shape, generator=torch.Generator().manual_seed(seed))
        prompt.copy_(noise if near is None else near + 0.1 * noise)
    save_adapter(adaptation, folder, {"name": "llama", "fingerprint": f"mark {width}"})
    return prompt.detach().clone()


def attached(method, width: int = 32):
    model = tiny("llama", hidden_size=width)
    method = method.with_tokenizer(None)
    method.check_base({"fingerprint": f"mark {width}"})
    return model, attach(model, [method])


def test_a_prompt_starts_as_the_source_with_the_sources_loss(tmp_path):
    source = run(tmp_path / "a", 1)
    for method in (
        SPoT(sources=(str(tmp_path / "a"),)),
        TransferablePromptTuning(source=str(tmp_path / "a")),
    ):
        model, adaptation = attached(method)
        assert torch.equal(adaptation.parameters()[0][1], source)
        assert adaptation.chosen[0].length == 4
        assert len(adaptation.chosen[0].sha256) == 64
        plain = tiny("llama")
        other = attach(plain, [PromptTuning(length=4)])
        with torch.no_grad():
            other.parameters()[0][1].copy_(source)
            ids = torch.cat([torch.tensor([adaptation.soft_ids]), IDS], 1)
            assert torch.equal(model(ids).logits, plain(ids).logits)


def test_of_several_the_most_similar_is_taken_and_noted(tmp_path):
    own = run(tmp_path / "own", 9)
    names = [str(tmp_path / name) for name in "abc"]
    prompts = [run(tmp_path / "a", 1), run(tmp_path / "b", 2, near=own), run(tmp_path / "c", 3)]
    for kind in ("mean", "tokens"):
        method = SPoT(sources=tuple(names), target=str(tmp_path / "own"), similarity=kind)
        _, adaptation = attached(method)
        assert adaptation.chosen[0].chosen == names[1]
        assert torch.equal(adaptation.parameters()[0][1], prompts[1])
    assert similarity(own, own, "mean") == pytest.approx(1)
    rows = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert similarity(rows, rows, "tokens") == pytest.approx(0.5)


def test_a_prompt_of_another_model_goes_through_a_projector(tmp_path):
    source, names = run(tmp_path / "a", 1, width=48), [str(tmp_path / name) for name in ("a", "b", "c", "d")]
    run(tmp_path / "b", 2, width=48)
    known = [run(tmp_path / "c", 3), run(tmp_path / "d", 4)]
    pairs = ((names[0], names[2]), (names[1], names[3]))
    _, adaptation = attached(TransferablePromptTuning(source=names[0], pairs=pairs, hidden=64))
    started = adaptation.parameters()[0][1]
    assert (started - known[0]).square().mean() < 0.05 * known[0].square().mean()
    model, adaptation = attached(TransferablePromptTuning(source=names[0], tune="projector", hidden=8))
    assert adaptation.trainable == (48 + 1) * 8 + (8 + 1) * 32
    W1, b1, W2, b2 = (parameter.detach() for _, parameter in adaptation.parameters())
    ids = torch.cat([torch.tensor([adaptation.soft_ids]), IDS], 1)
    before = model(ids).logits
    adaptation.finish()
    ((_, prompt),) = adaptation.parameters()
    torch.testing.assert_close(prompt, torch.tanh(source @ W1.T + b1) @ W2.T + b2)
    torch.testing.assert_close(model(ids).logits, before)


def test_what_cannot_be_started_from_is_refused(tmp_path):
    names = [str(tmp_path / name) for name in ("a", "b", "lora")]
    run(tmp_path / "a", 1)
    run(tmp_path / "b", 2, width=48)
    save_adapter(attach(tiny("llama"), [LoRA()]), tmp_path / "lora", {"name": "llama"})
    for method, told in (
        (SPoT(sources=(str(tmp_path),)), "is neither a run that has ended nor an adapter folder"),
        (SPoT(sources=(names[2],)), r"\(lora\) holds no soft prompt of free rows"),
        (SPoT(sources=tuple(names[:2])), "2 sources are given and nothing to compare them with: set target"),
        (SPoT(target=names[0]), "target is given and no sources"),
        (SPoT(sources=(names[1],), target=names[0]), "is 48 wide and that in .* 32: name runs of one base"),
        (SPoT(sources=(names[1],)), "trained for another base model"),
        (TransferablePromptTuning(source=names[1]), "trained for another base model"),
        (TransferablePromptTuning(tune="projector"), "nothing to project: set source"),
        (TransferablePromptTuning(source=names[1], pairs=((names[0], names[0]),)), "32 wide|48 and 32 wide"),
    ):
        with pytest.raises(PeftkitError, match=told):
            attached(method)
