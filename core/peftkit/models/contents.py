"""What weight files hold of a model: transformers' own renamings lead from the names in them to the model's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from peftkit.families.image_text import unread
from peftkit.models.merged_stacks import MergedStack, StackSources, StoredTensor
from peftkit.tensor_file import TensorFile


class Contents:
    """The tensors of weight files, sorted by what they are of a model; no tensor is read."""

    def __init__(self, model: nn.Module, paths: Iterable[Path]):
        self.places: dict[str, StoredTensor] = {}
        """The tensors that the model has as they are, by its own names."""
        self.unread: list[StoredTensor] = []
        """Those of parts that the model was built without."""
        self.strays: list[StoredTensor] = []
        """Those that the model does not have, or in another form, into which transformers converts them."""
        self.merged: dict[str, MergedStack] = {}
        """Stacks of experts' weights that are made of strays, by the model's names."""
        held = [StoredTensor(file, key) for file in map(TensorFile, paths) for key in file.names]
        own, elsewhere, ignored = set(model.state_dict()), outside(model), _ignored(model)
        sources = StackSources(model)
        for place, (name, pattern) in zip(held, _names(model, [place.key for place in held]), strict=True):
            if pattern is not None:
                self.strays.append(place)
                sources.add(name, pattern, place)
            elif name in own:
                self.places[name] = place
            elif elsewhere.match(name):
                self.unread.append(place)
            elif ignored is None or not ignored.search(name):
                self.strays.append(place)
        self.merged = sources.stacks()

    @property
    def whole(self) -> bool:
        """Whether the files hold nothing but the model's tensors, and stacks that can be merged."""
        return len(self.strays) == sum(stack.count for stack in self.merged.values())


def _names(model: nn.Module, keys: Iterable[str]) -> list[tuple[str, str | None]]:
    """Return the model's name of each tensor in a checkpoint; of one that is converted, the pattern that it matches."""
    mapping = get_model_conversion_mapping(cast(Any, model))
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, own = str(cast(Any, model).base_model_prefix), model.state_dict()
    names = []
    for key in keys:
        name, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if name not in own and key in own:
            name, pattern = rename_source_key(key, [], [], prefix, own)
        names.append((name, pattern if name in own else None))
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
