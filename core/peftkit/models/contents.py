"""What weight files hold of a model: transformers' own renamings lead from the names in them to the model's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from peftkit.families.image_text import unread


class Tensors(Protocol):
    """The tensors of a file by name, none of them read yet."""

    @property
    def names(self) -> list[str]:
        """The tensors' names."""
        ...

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        ...


class StoredTensor(NamedTuple):
    """Where a tensor lies, and under which name."""

    file: Tensors
    key: str

    @property
    def shape(self) -> list[int]:
        """The shape that it has there."""
        return self.file.shape(self.key)

    def read(self) -> Tensor:
        """Read it."""
        return self.file.read(self.key)


class Contents:
    """The tensors of weight files, sorted by what they are of a model; no tensor is read."""

    def __init__(self, model: nn.Module, files: Iterable[Tensors]):
        self.places: dict[str, StoredTensor] = {}
        """The tensors that the model has as they are, by its own names."""
        self.unread: list[StoredTensor] = []
        """Those of parts that the model was built without."""
        self.strays: list[StoredTensor] = []
        """Those that the model does not have, or in another form, into which transformers converts them."""
        held = [StoredTensor(file, key) for file in files for key in file.names]
        own, elsewhere, ignored = set(model.state_dict()), outside(model), _ignored(model)
        for place, name in zip(held, _names(model, [place.key for place in held]), strict=True):
            if name in own:
                self.places[name] = place
            elif elsewhere.match(name):
                self.unread.append(place)
            elif ignored is None or not ignored.search(name):
                self.strays.append(place)


def _names(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """Return the model's name of each tensor in a checkpoint; of one that has to be converted, its own name."""
    mapping = get_model_conversion_mapping(cast(Any, model))
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, own = str(cast(Any, model).base_model_prefix), model.state_dict()
    names = []
    for key in keys:
        name, converter = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, converter = rename_source_key(key, [], [], prefix, own)
        names.append(name if converter is None or name not in own else f"{key} to be converted")
    return names


def outside(model: nn.Module) -> re.Pattern[str]:
    """Return what matches the names of tensors of parts that are not there, with or without the body's prefix."""
    prefix = f"{cast(Any, model).base_model_prefix}."
    paths = [path for part in unread(model) for path in (part.path, part.path.removeprefix(prefix))]
    return re.compile("|".join(rf"{re.escape(path)}\." for path in paths) or "(?!)")


def _ignored(model: nn.Module) -> re.Pattern[str] | None:
    """Return what matches the names of tensors that a checkpoint may hold for nothing."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None)
    return re.compile("|".join(patterns)) if patterns else None
