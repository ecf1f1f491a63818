from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftkit.errors import PeftkitError
from peftkit.training import checkpoint

PARTS = {
    "adapter": {"0/a": torch.arange(6.0).view(2, 3)},
    "optimizer": {"0/a/exp_avg": torch.ones(2, 3), "0/a/step": torch.tensor(4.0)},
    "random": {"cpu": torch.get_rng_state()},
}


def write(folder: Path, step: int) -> Path:
    return checkpoint.write(folder, step, PARTS, {"step": step, "optimizer": {}})


def test_what_is_written_is_read(tmp_path: Path):
    parts, facts = checkpoint.read(write(tmp_path, 7))
    assert facts["step"] == 7
    for part, tensors in PARTS.items():
        assert parts[part].keys() == tensors.keys()
        assert all(torch.equal(parts[part][name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("file", ["adapter.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
def test_changed_file_is_refused_and_the_older_checkpoint_named(tmp_path: Path, file: str):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    place = content.index(b'"step"') + 8 if file == "state.json" else len(content) - 1
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(PeftkitError, match=rf"{file}.*continue from step-00000001"):
        checkpoint.read(path.parent)


def test_truncated_and_missing_files_are_refused(tmp_path: Path):
    path = write(tmp_path, 1)
    (path / "adapter.safetensors").write_bytes((path / "adapter.safetensors").read_bytes()[:-3])
    with pytest.raises(PeftkitError, match=r"adapter.safetensors.*No older checkpoint"):
        checkpoint.read(path)
    (path / "adapter.safetensors").unlink()
    with pytest.raises(PeftkitError, match=r"adapter.safetensors"):
        checkpoint.read(path)
    (path / "state.json").write_text(json.dumps([1]))
    with pytest.raises(PeftkitError, match=r"state.json"):
        checkpoint.read(path)


def test_failure_while_writing_leaves_nothing_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.files, "write_json", fail)
    with pytest.raises(PeftkitError, match="No space left"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    checkpoint.read(tmp_path / "step-00000001")


def test_the_newest_are_kept(tmp_path: Path):
    for step in (9, 100, 20):
        write(tmp_path, step)
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.listed(tmp_path)] == ["step-00000020", "step-00000100"]
    checkpoint.prune(tmp_path, 0)
    assert [path.name for path in checkpoint.listed(tmp_path)] == ["step-00000100"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path):
    write(tmp_path, 1)
    (tmp_path / ".step-00000002.x1.tmp").mkdir()
    (tmp_path / ".step-00000002.x1.tmp" / "adapter.safetensors").write_bytes(b"half")
    (tmp_path / ".log.jsonl.x.tmp").write_bytes(b"")
    checkpoint.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
