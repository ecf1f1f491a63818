"""Write changed tensors into a copy of a checkpoint's files, one file at a time; the others stay bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peftkit import files, tensor_file
from peftkit.models import folder as folders


def rewrite(prefix: str, changed: Mapping[str, Tensor], untied: str | None, source: Path, output: Path) -> bool:
    """Copy the weight files of `source` to `output` with the `changed` tensors (by the model's names) in place.

    Each is cast once, to the dtype that it has in the file. `prefix` is that of the decoder in the model's names, which
    some files leave out; `untied` names a weight that the files do not hold because it was tied. Returns False where
    another tensor is stored under a name or in a shape of its own, as some families do; nothing is then written.
    """
    paths = folders.shards(source)
    held = {key: file.shape(key) for file in map(tensor_file.TensorFile, paths) for key in file.names}
    keys = {key: name for name in changed if (key := _key(name, prefix, held)) is not None}
    if set(changed) - set(keys.values()) - {untied} or any(held[k] != list(changed[n].shape) for k, n in keys.items()):
        return False
    added = untied if untied not in keys.values() else None
    index: dict[str, str] = {}
    size = 0
    for path in paths:
        tensors = tensor_file.read_tensors(path)
        for key, name in keys.items():
            if key in tensors:
                tensors[key] = changed[name].to(tensors[key].dtype)
        if added is not None and path == paths[-1]:
            tensors[added] = changed[added].to(next(iter(tensors.values())).dtype)
        tensor_file.write_tensors(output / path.name, tensors)
        index |= dict.fromkeys(tensors, path.name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(paths) > 1:
        files.write_json(output / folders.INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    return True


def _key(name: str, prefix: str, held: Mapping[str, Any]) -> str | None:
    """Return the name in the files of the model's tensor `name`, or None."""
    return next((key for key in (name, name.removeprefix(prefix), prefix + name) if key in held), None)
