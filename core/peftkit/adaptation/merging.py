"""Merge an adaptation into the weights of its model, and undo it."""

from __future__ import annotations

import torch

from peftkit.adaptation.merge import Merged, merge_module, shift_module
from peftkit.adaptation.state import State
from peftkit.errors import PeftkitError
from peftkit.ports.adapter import Adapter
from peftkit.quantization.weight import shape


class Merging(State):
    """What an adaptation does with the model's weights."""

    _merged: list[Merged] | None = None

    def beside(self) -> list[str]:
        """Return the names of all adaptations of the model."""
        raise TypeError(f"{type(self).__name__} does not know what is attached")

    def merge_(self, *, keep_base: bool = True) -> None:
        """Merge into the model's weights in place, in fp32, one module at a time; cast once to the module's dtype.

        With `keep_base` the old weights are kept for `unmerge_`. Raises PeftkitError with nothing changed where a
        method cannot merge, the adaptation is not active, or an adapter holds NaN or infinity.
        """
        merged = [merge_module(self.model, adapters, keep_base) for adapters in self._to_merge()]
        self._merged = merged if keep_base else None
        self.context.merged.add(self.name)

    def merge_packed_(self) -> None:
        """Merge into the stored scales and zero points in place: every code stays as it is, and the model as small.

        The change of a weight is exact but for the rounding of its new scales and zero points to fp32. Undone by
        `unmerge_`. Raises PeftkitError with nothing changed where an adapter has no equal there, or another adaptation
        is attached.
        """
        others = [name for name in self.beside() if name != self.name]
        if others:
            raise PeftkitError(f"'{others[0]}' is attached to the same stored weights: remove it first.")
        merged: list[Merged] = []
        try:
            for adapters in self._to_merge():
                merged.append(shift_module(self.model, adapters))
        except PeftkitError:
            for record in merged:
                record.restore()
            raise
        self._merged = merged
        self.context.merged.add(self.name)

    def unmergeable(self) -> str | None:
        """Say why the adapters cannot be merged into the weights; None where they can."""
        for part in self.parts:
            if not part.method.mergeable:
                return (
                    f"the method '{part.method.name}' cannot be merged into the model's weights: keep the adapter "
                    "beside the model, and generate and evaluate from the run folder."
                )
        for site in (adapter.site for adapter in self.lasting()):
            if shape(site.module) is None and site.stack is None:
                return (
                    f"the adapter at {site.id} stands behind a whole part of a layer, which ends in no single linear "
                    "map that could take it up: keep it beside the model."
                )
            if site.tied and site.layer is not None:
                return (
                    f"the weight of {site.id} is that of another layer too, which a change of one of them would not "
                    "be: keep the adapter beside the model."
                )
        return None

    def _to_merge(self) -> list[list[Adapter]]:
        """Return the adapters by module; PeftkitError where a method cannot merge or a value is not finite."""
        if self.name not in self.context.active:
            raise PeftkitError(f"the adapter '{self.name}' is switched off: activate it before it is merged.")
        refusal = self.unmergeable()
        if refusal is not None:
            raise PeftkitError(refusal)
        for key, tensor in self._tensors():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise PeftkitError(f"the adapter's tensor {key} holds NaN or infinity: nothing was merged.")
        seats: dict[str, list[Adapter]] = {}
        for adapter in self.lasting():
            seats.setdefault(f"{adapter.site.path}/{adapter.site.stack}", []).append(adapter)
        return list(seats.values())

    def unmerge_(self) -> None:
        """Undo `merge_` or `merge_packed_`: the base's weights are back bit for bit and the adapters run again."""
        if self.name not in self.context.merged:
            raise PeftkitError("nothing is merged: there is nothing to undo.")
        if self._merged is None:
            raise PeftkitError(
                f"the adapter '{self.name}' was merged into the model's weights and the base's were not kept: load the "
                "base model again."
            )
        for merged in self._merged:
            merged.restore()
        self._merged = None
        self.context.merged.discard(self.name)
