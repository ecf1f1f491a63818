"""Go on from a trained adapter: what it was trained on is held against the run's, and its tensors are the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from peftkit import tensor_file
from peftkit.adaptation.adaptation import Adaptation
from peftkit.adaptation.folder import (
    OBJECTIVE,
    TENSORS,
    check_children,
    check_finite,
    check_loaded,
    describe_adapter,
    digests,
    find_adapter,
)
from peftkit.adaptation.state import Child
from peftkit.errors import PeftkitError


def check_start(run: Path, base: Mapping[str, Any], children: Mapping[str, Child]) -> None:
    """Refuse an adapter to go on from that was trained on another base, storage or children, or is damaged.

    `base` is what `save_adapter` is told of the model; a mark that is None is not compared.
    """
    folder = find_adapter(run)
    description = describe_adapter(folder)
    check_loaded(folder, description["base"], base.get("fingerprint"), base.get("quantization"))
    check_children(folder, description.get("children", {}), children)


def go_on(adaptation: Adaptation, run: Path, *, load: bool = True) -> None:
    """Note which adapter an adaptation goes on from, and `load` its tensors; those beside the adapters are left out.

    The adaptation was attached with `loading`. Raises PeftkitError for tensors that are not those of its methods.
    """
    folder = find_adapter(run)
    base = describe_adapter(folder)["base"]
    files_of = digests(folder)
    adaptation.went_on_from = {"folder": str(run), "files": files_of, "fingerprint": base.get("fingerprint")}
    if not load:
        return
    tensors = tensor_file.read_tensors(folder / TENSORS)
    check_finite(folder / TENSORS, tensors)
    try:
        adaptation.load_state({key: tensor for key, tensor in tensors.items() if key.partition("/")[0].isdecimal()})
    except PeftkitError as error:
        raise PeftkitError(f"{folder / TENSORS}: {error}") from None


def load_module(run: Path, objective: Mapping[str, Any], module: nn.Module | None) -> None:
    """Give an objective's module the tensors of that which was trained with an adapter, where one was.

    `objective` is the `name` and `options` of it. Raises PeftkitError for a module of another objective or options.
    """
    folder = find_adapter(run)
    trained = describe_adapter(folder).get(OBJECTIVE)
    if trained is None:
        return
    if trained != objective or module is None:
        raise PeftkitError(
            f"the adapter in {folder} was trained for the objective '{trained['name']}' with {trained['options']}, and "
            f"the recipe's is '{objective['name']}' with {objective['options']}: go on with the same one."
        )
    tensors = tensor_file.read_tensors(folder / TENSORS)
    module.load_state_dict({key.partition("/")[2]: t for key, t in tensors.items() if key.startswith(f"{OBJECTIVE}/")})
