"""Safetensors files read tensor by tensor: the same bytes as the library reads, and clear words for damaged files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftkit.errors import PeftkitError
from peftkit.tensor_file import TensorFile, read_tensors, write_tensors

TENSORS = {
    "b.weight": torch.randn(5, 7),
    "a.bias": torch.randn(3).bfloat16(),
    "half": torch.randn(2, 2, 2).half(),
    "codes": torch.arange(9, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
}


def test_what_is_read_is_what_the_library_wrote_and_the_other_way_round(tmp_path):
    save_file(TENSORS, tmp_path / "theirs.safetensors")
    write_tensors(tmp_path / "ours.safetensors", TENSORS)
    for found in (read_tensors(tmp_path / "theirs.safetensors"), load_file(tmp_path / "ours.safetensors")):
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_one_tensor_is_read_alone_in_memory_of_its_own(tmp_path):
    write_tensors(tmp_path / "all.safetensors", TENSORS)
    file = TensorFile(tmp_path / "all.safetensors")
    assert sorted(file.names) == sorted(TENSORS)
    assert file.shape("b.weight") == [5, 7]
    found = file.read("b.weight")
    assert found.untyped_storage().nbytes() == found.nbytes
    found.zero_()
    assert torch.equal(file.read("b.weight"), TENSORS["b.weight"])


def test_views_and_transposed_tensors_are_written_as_what_they_show(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "views.safetensors", {"turned": whole.T})
    assert torch.equal(read_tensors(tmp_path / "views.safetensors")["turned"], whole.T)


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_cut_file_is_told(tmp_path, cut):
    path = tmp_path / "cut.safetensors"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(PeftkitError, match=r"cut\.safetensors is truncated or damaged"):
        TensorFile(path)


def test_a_file_that_is_cut_after_it_was_opened_is_told(tmp_path):
    path = tmp_path / "late.safetensors"
    write_tensors(path, TENSORS)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PeftkitError, match="ends early"):
        file.read(file.names[-1])


def test_a_missing_file_and_a_dtype_that_is_not_known_are_told(tmp_path):
    with pytest.raises(PeftkitError, match="cannot read"):
        TensorFile(tmp_path / "none.safetensors")
    path = tmp_path / "odd.safetensors"
    save_file({"odd": torch.zeros(4, dtype=torch.complex64)}, path)
    with pytest.raises(PeftkitError, match="the tensor odd is of the dtype C64"):
        TensorFile(path).read("odd")
