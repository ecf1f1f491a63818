"""Switch parts of an adaptation off."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from peftkit.adaptation.state import State
from peftkit.errors import PeftkitError


class Switching(State):
    """What an adaptation runs."""

    @contextmanager
    def without(self, positions: Collection[int]) -> Iterator[None]:
        """Run inside as if the parts at these positions had not been attached, bit for bit.

        Ids of a soft prompt that is switched off are not to be fed: `soft_ids` lacks them. Raises PeftkitError for a
        position that is not there, while the adaptation is merged, and where the base's weights were not kept.
        """
        wrong = [position for position in positions if position not in range(len(self.parts))]
        if wrong:
            names = ", ".join(f"{position} ({part.method.name})" for position, part in enumerate(self.parts))
            raise PeftkitError(f"no part stands at position {wrong[0]}: there are {names}.")
        if self.name in self.context.merged:
            raise PeftkitError("a part of a merged adaptation cannot be switched off: call unmerge_ first.")
        off = [self.parts[position] for position in positions]
        changed = [part for part in off if part.changed and part.tuned is None]
        running = [adapter for part in off for adapter in part.adapters.values() if adapter.enabled]
        try:
            for part in changed:
                part.switch(on=False)
            for adapter in running:
                adapter.enabled = False
            self.context.notify()
            yield
        finally:
            for part in changed:
                part.switch(on=True)
            for adapter in running:
                adapter.enabled = True
            self.context.notify()
