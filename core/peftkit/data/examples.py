"""Examples that are read from their files when they are asked for, and not held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import overload

from peftkit.data.example import Example
from peftkit.errors import PeftkitError

Item = Callable[[], Example]
"""An example that is still to be made: reading its line is cheap, parsing and checking it is not."""


class Examples(Sequence[Example]):
    """The examples that `items` yields, anew for each pass; as many are made as are asked for.

    A pass over no example is a PeftkitError with the text `empty`, where one is given.
    """

    def __init__(self, items: Callable[[], Iterable[Item]], empty: str | None = None):
        self._items, self.empty = items, empty
        self._count: int | None = None

    @classmethod
    def at_once(cls, read: Callable[[], Iterable[Example]]) -> Examples:
        """Return examples that `read` returns together, the first time that one is asked for; they are held."""
        held: list[list[Example]] = []

        def items() -> Iterator[Item]:
            if not held:
                held.append(list(read()))
            return (partial(_itself, example) for example in held[0])

        return cls(items)

    def items(self) -> Iterator[Item]:
        """Yield every example unmade."""
        item = None
        for item in self._items():
            yield item
        if item is None and self.empty is not None:
            raise PeftkitError(self.empty)

    def __iter__(self) -> Iterator[Example]:
        return (item() for item in self.items())

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self.items())
        return self._count

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...
    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            forward = all(value is None or value >= 0 for value in (at.start, at.stop)) and (at.step or 1) > 0
            items = self.items() if forward else iter(list(self.items())[at])
            return [item() for item in (islice(items, at.start, at.stop, at.step) if forward else items)]
        found = next(islice(self.items(), at if at >= 0 else len(self) + at, None), None)
        if found is None:
            raise IndexError(at)
        return found()

    def picked(self, wanted: Sequence[int]) -> Examples:
        """Return the examples at the positions `wanted`, which rise."""

        def items() -> Iterator[Item]:
            all_items, at = self.items(), 0
            for place in wanted:
                yield next(islice(all_items, place - at, None))
                at = place + 1

        return Examples(items, self.empty)

    def changed(self, change: Callable[[Example], Example]) -> Examples:
        """Return each example as `change` makes it."""
        return Examples(lambda: (partial(_changed, change, item) for item in self.items()), self.empty)

    def chunks(self, size: int, first: int = 0, step: int = 1, after: int = 0) -> Iterator[tuple[int, list[Example]]]:
        """Yield every `step`-th chunk of `size` neighbouring examples, from the `first` one on, with its number.

        The first `after` examples belong to none.
        """
        items = islice(self.items(), after, None)
        number = 0
        while chunk := list(islice(items, size)):
            if number % step == first:
                yield number, [item() for item in chunk]
            number += 1


def _itself(example: Example) -> Example:
    return example


def _changed(change: Callable[[Example], Example], item: Item) -> Example:
    return change(item())
