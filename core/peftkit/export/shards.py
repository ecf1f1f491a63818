"""Write changed tensors into a copy of a checkpoint's files, one file at a time; the others stay bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from peftkit import files, tensor_file
from peftkit.models import folder as folders
from peftkit.models.contents import Contents


def rewrite(
    contents: Contents, changed: Mapping[str, Tensor], untied: str | None, paths: Sequence[Path], output: Path
) -> bool:
    """Copy the weight files `paths` to `output` with the `changed` tensors (by the model's names) in place.

    Each is cast once, to the dtype that it has in the file. `contents` says where the model's tensors lie there;
    `untied` names a weight that the files do not hold because it was tied. Returns False where another tensor is stored
    in a form or a shape of its own, as some families do; nothing is then written.
    """
    held = {name: contents.places[name] for name in changed if name in contents.places}
    if set(changed) - set(held) - {untied} or any(held[n].shape != list(changed[n].shape) for n in held):
        return False
    keys = {place.key: name for name, place in held.items()}
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
