"""Invariant 5: what is saved loads in a fresh process under another seed, strictly, and on its own base alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from storages import stored
from subjects import ARCHITECTURES, SUBJECTS, attached, drawn, logits, randomise

from peftkit.adaptation import DESCRIPTION, TENSORS, load_adapter, save_adapter
from peftkit.errors import PeftkitError
from peftkit.models.fingerprint import fingerprint
from peftkit.models.tiny import tiny

READER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
torch.manual_seed(999)
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[2])
from storages import stored
from subjects import logits
from peftkit.adaptation import DESCRIPTION, TENSORS, load_adapter, save_adapter
from peftkit.models.fingerprint import fingerprint
for folder in sorted(Path(sys.argv[1]).iterdir()):
    subject = json.loads((folder / "subject.json").read_text())
    model = stored([subject["name"]], subject["architecture"])
    load_adapter(model, folder / "adapter", fingerprint(model))
    save_file({"logits": logits(model).contiguous()}, folder / "loaded.safetensors")
"""
DRAWN = drawn("a fresh process", costly=False)
LEFT = [subject for subject in SUBJECTS if subject not in DRAWN]


def write(folder: Path, name: str, position: int, architecture: str) -> torch.Tensor:
    model, adaptation = attached(name, position, architecture)
    randomise(adaptation)
    save_adapter(
        adaptation, folder / "adapter", {"name": architecture, "fingerprint": fingerprint(stored([name], architecture))}
    )
    (folder / "subject.json").write_text(json.dumps({"name": name, "architecture": architecture}))
    return logits(model)


@pytest.mark.entries
@pytest.mark.parametrize("subjects", [DRAWN, pytest.param(LEFT, marks=pytest.mark.thorough)], ids=["drawn", "left"])
def test_a_fresh_process_gives_equal_logits(subjects, only, tmp_path):
    """One process reads them all: to start one takes longer than to read a hundred."""
    expected = {}
    for name, position, architecture in subjects:
        if only not in (None, name):
            continue
        label = f"{name}-{position}-{architecture}"
        (tmp_path / label).mkdir()
        expected[label] = write(tmp_path / label, name, position, architecture)
    here = Path(__file__).parent
    paths = {**os.environ, "PYTHONPATH": ":".join([str(here), *sys.path]), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", READER, str(tmp_path), str(here)], check=True, env=paths, timeout=300)
    for label, value in expected.items():
        assert torch.equal(load_file(tmp_path / label / "loaded.safetensors")["logits"], value), label


def test_the_file_holds_the_adapter_alone_and_is_read_strictly(name, position, architecture, tmp_path):
    write(tmp_path, name, position, architecture)
    path = tmp_path / "adapter" / TENSORS
    tensors = load_file(path)
    model, adaptation = attached(name, position, architecture)
    assert set(tensors) == set(adaptation.state())
    assert all(tensor.numel() for tensor in tensors.values())
    assert sorted(item.name for item in (tmp_path / "adapter").iterdir()) == [DESCRIPTION, TENSORS]
    first = sorted(tensors)[0]
    damages = {
        "lacks": {key: value for key, value in tensors.items() if key != first},
        "unexpected": tensors | {"0/stray": torch.zeros(1)},
        "shape": tensors | {first: torch.zeros(*tensors[first].shape, 2)},
    }
    adaptation.remove()
    for word, damaged in damages.items():
        save_file(damaged, path)
        with pytest.raises(PeftkitError, match=word):
            load_adapter(model, tmp_path / "adapter", None)
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(PeftkitError, match="truncated or damaged"):
        load_adapter(model, tmp_path / "adapter", None)


@pytest.mark.costly
def test_another_base_is_refused(name, position, architecture, tmp_path):
    write(tmp_path, name, position, architecture)
    other = stored([name], architecture, seed=1)
    before = logits(other)
    with pytest.raises(PeftkitError, match="another base model"):
        load_adapter(other, tmp_path / "adapter", fingerprint(other))
    assert torch.equal(logits(other), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fingerprint_tells_bases_apart_and_not_dtypes(architecture):
    model = tiny(architecture)
    mark = fingerprint(model)
    assert fingerprint(tiny(architecture, seed=1)) != mark
    assert fingerprint(tiny(architecture).bfloat16()) == mark
