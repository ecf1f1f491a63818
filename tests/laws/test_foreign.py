"""A method on a checkpoint of bitsandbytes is the method on the dense weights that it stands for (invariant 12)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from draw import marked, share
from model_folders import section
from quantized_checkpoints import write_bitsandbytes
from storages import looked_at
from subjects import build, hold_equal_to_dense, randomise, tokens

from peftkit.adaptation import attach, check_methods, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.tiny import tiny
from peftkit.quantization.foreign import ForeignLinear
from peftkit.quantization.weight import dense, store

FEW = ["lora", "ia3", "serial-adapter", "prefix-tuning", "bitfit"]
"""One of each port."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")

    @cache
    def written(kind: str, architecture: str) -> Path:
        return write_bitsandbytes(folder / f"{kind}-{architecture}", kind, architecture)

    return written


def pair(folder: Path, architecture: str):
    """Return the checkpoint's model and a dense one with the weights that it stands for."""
    model = load(section(folder)).model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ForeignLinear)}
    assert layers
    twin = tiny(architecture)
    for name, module in layers.items():
        store(twin.get_submodule(name), dense(module).clone())
    return model, twin, layers


@cache
def taken(method: str) -> str | None:
    """Return the architecture whose packed form the method takes, or None."""
    for architecture in ("llama", "gpt2"):
        try:
            check_methods(looked_at(None, architecture, packed=True), [build(method, 0)])
        except PeftkitError:
            continue
        return architecture
    return None


@pytest.mark.parametrize("method", [name for name in METHODS.names() if taken(name) is None])
def test_what_trains_the_packed_weights_is_refused(checkpoint, method):
    model = load(section(checkpoint("nf4", "llama"))).model
    with pytest.raises(
        PeftkitError, match="without quantization" if METHODS[method].needs is None else "is not stored as"
    ):
        check_methods(model, [build(method, 0)])


TAKEN = [("nf4", name) for name in METHODS.names() if taken(name)]
OTHER = [(kind, name) for kind in ("fp4", "int8") for name in FEW]


@pytest.mark.parametrize(("kind", "method"), marked([*TAKEN, *OTHER], [*share("foreign", TAKEN), *OTHER]))
def test_forward_and_backward_equal_those_on_the_dense_weights(checkpoint, kind, method):
    architecture = taken(method)
    model, twin, layers = pair(checkpoint(kind, architecture), architecture)
    hold_equal_to_dense(model, twin, method, layers)


@pytest.mark.parametrize("method", FEW)
def test_it_is_saved_and_loaded_and_merges_and_unmerges(checkpoint, method, tmp_path):
    architecture = taken(method)
    loaded = load(section(checkpoint("nf4", architecture)))
    with torch.no_grad():
        adaptation = attach(loaded.model, [build(method, 0)])
        adaptation.prepare([])
        randomise(adaptation)
        adapted = loaded.model(input_ids=tokens()).logits
        save_adapter(adaptation, tmp_path / "adapter", {"name": "base", "fingerprint": loaded.fingerprint})
        if METHODS[method].mergeable:
            adaptation.merge_()
            assert (loaded.model(input_ids=tokens()).logits - adapted).abs().max() <= 1e-4
            adaptation.unmerge_()
            assert torch.equal(loaded.model(input_ids=tokens()).logits, adapted)
        again = load(section(checkpoint("nf4", architecture)))
        load_adapter(again.model, tmp_path / "adapter", again.fingerprint)
        again.model.eval()
        assert torch.equal(again.model(input_ids=tokens()).logits, adapted)
        other = load(section(checkpoint("fp4", architecture)))
        with pytest.raises(PeftkitError, match="made for another base model"):
            load_adapter(other.model, tmp_path / "adapter", other.fingerprint)
