"""The key of an example (its language, its task), by which adapters are chosen: it rides on the id of the first token.

Whatever holds rows of ids holds their keys so: micro-batches and caches, packed or padded. Rows with different keys
begin with different ids, so that nothing of one is ever taken for another's. The body of a model sees ids without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftkit.errors import PeftkitError, hint

KEY = "key"
"""The field of an example that has its key, where a method names no other."""
STRIDE = 1 << 22
"""Above every id of a vocabulary and of soft prompts: key number n adds n + 1 times as much to an id."""
MOST = (1 << 31) // STRIDE - 1
"""Keys at most: ids are kept in 32 bits."""


@dataclass(frozen=True)
class Keys:
    """The keys that adapters know, in the order of their numbers."""

    field: str
    """The field of an example that has its key."""
    names: tuple[str, ...]

    def number(self, name: Any) -> int:
        """Return the number of a key; PeftkitError with the nearest spelling for one that is not known."""
        if str(name) not in self.names:
            raise PeftkitError(
                f"'{self.field}' is '{name}', and no adapters are kept for that key.{hint(str(name), self.names)} "
                f"Allowed: {', '.join(self.names)}."
            )
        return self.names.index(str(name))

    def number_in(self, meta: Mapping[str, Any]) -> int:
        """Return the number of the key among the fields of an example; PeftkitError where it has none."""
        if meta.get(self.field) is None:
            found = ", ".join(map(str, meta)) or "none"
            raise PeftkitError(
                f"there is no '{self.field}', by which adapters are chosen; its fields are {found}."
                f"{hint(self.field, meta)} Allowed: {', '.join(self.names)}."
            )
        return self.number(meta[self.field])


def marked(ids: Sequence[int], number: int) -> list[int]:
    """Return the ids of a row with key `number` on the first of them."""
    return [plain(ids[:1])[0] + (number + 1) * STRIDE, *ids[1:]] if ids else []


def plain(ids: Sequence[int]) -> list[int]:
    """Return ids without keys."""
    return [index % STRIDE if index >= STRIDE else index for index in ids]


def like(ids: Sequence[int], row: Sequence[int]) -> list[int]:
    """Return ids with the key that another row has, if it has one."""
    number = row[0] // STRIDE - 1 if row else -1
    return plain(ids) if number < 0 else marked(plain(ids), number)


def numbers(ids: Tensor) -> Tensor:
    """Return the number of the key on each id; -1 where there is none."""
    return ids.clamp(min=0).div(STRIDE, rounding_mode="floor") - 1


def without(ids: Tensor) -> Tensor:
    """Return ids without keys; what is below zero stays."""
    return torch.where(ids < STRIDE, ids, ids % STRIDE)
