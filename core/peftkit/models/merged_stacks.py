"""Stacks of experts' weights that a checkpoint holds expert by expert: each is merged and read by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    dot_natural_key,
)

from peftkit.tensor_file import TensorFile


class StoredTensor(NamedTuple):
    """Where a tensor lies, and under which name."""

    file: TensorFile
    key: str

    @property
    def shape(self) -> list[int]:
        """The shape that it has there."""
        return self.file.shape(self.key)

    def read(self, index: int | None = None) -> Tensor:
        """Read it, or of a stack the one with this number."""
        return self.file.read(self.key, index)


@dataclass(frozen=True)
class MergedStack:
    """A stack [experts, a, b] of which each weight lies in tensors of its own, as transformers would convert them."""

    name: str
    converter: WeightConverter
    sources: Mapping[str, Sequence[StoredTensor]]
    """The tensors of each pattern, one for each expert."""
    model: nn.Module

    @property
    def count(self) -> int:
        """How many tensors it is made of."""
        return sum(map(len, self.sources.values()))

    @property
    def shape(self) -> list[int]:
        """The shape of the stack; empty where its tensors do not fit together."""
        lengths = {len(places) for places in self.sources.values()}
        shapes = [{tuple(place.shape) for place in places} for places in self.sources.values()]
        if len(lengths) != 1 or any(len(each) != 1 for each in shapes) or len(shapes) != len(self._patterns):
            return []
        hollow = {key: torch.empty(*each, device="meta") for key, each in zip(self.sources, shapes, strict=True)}
        return [lengths.pop(), *self._converted(hollow).shape]

    def read(self, index: int | None = None) -> Tensor:
        """Read one weight [a, b], or all."""
        if index is None:
            return torch.stack([self.read(one) for one in range(self.shape[0])])
        return self._converted({pattern: places[index].read() for pattern, places in self.sources.items()})

    @property
    def _patterns(self) -> list[str]:
        return self.converter.source_patterns

    def _converted(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return what transformers makes of the tensors of one expert."""
        collected: Any = {pattern: [parts[pattern]] for pattern in parts}
        for operation in self.converter.operations:
            collected = operation.convert(
                collected,
                source_patterns=self._patterns,
                target_patterns=self.converter.target_patterns,
                full_layer_name=self.name,
                model=self.model,
                config=cast(Any, self.model).config,
                missing_keys=None,
            )
        (made,) = collected.values()
        return made[0]


class StackSources:
    """Gathers the tensors of stacks, where what transformers does with them is done to each expert alone."""

    def __init__(self, model: nn.Module):
        mapping = get_model_conversion_mapping(cast(Any, model))
        self._model = model
        self._converters = {
            pattern: entry
            for entry in reversed(mapping)
            if isinstance(entry, WeightConverter) and _by_expert(entry)
            for pattern in entry.source_patterns
        }
        self._found: dict[str, dict[str, list[StoredTensor]]] = {}

    def add(self, name: str, pattern: str, place: StoredTensor) -> None:
        """Take up a tensor that matches the pattern of a conversion to the model's tensor of this name."""
        if pattern in self._converters:
            self._found.setdefault(name, {}).setdefault(pattern, []).append(place)

    def stacks(self) -> dict[str, MergedStack]:
        """Return the stacks that are there whole, by the model's names."""
        stacks = {}
        for name, sources in self._found.items():
            converter = self._converters[next(iter(sources))]
            ordered = {
                pattern: sorted(places, key=lambda place: dot_natural_key(place.key))
                for pattern, places in sources.items()
            }
            stacks[name] = MergedStack(name, converter, ordered, self._model)
        return {name: stack for name, stack in stacks.items() if stack.shape}


def _by_expert(converter: WeightConverter) -> bool:
    """Say whether a conversion stacks tensors and does nothing else across them."""
    first, *rest = converter.operations
    alone = all(
        (isinstance(one, Concatenate) and one.dim > 0)
        or (isinstance(one, Transpose) and min(one.dim0, one.dim1) > 0 and not one.check_dims)
        for one in rest
    )
    return isinstance(first, MergeModulelist) and first.dim == 0 and alone and len(converter.target_patterns) == 1
