"""What one method added to a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.method import Method
from peftkit.ports.adapter import Adapter, factors, undecayed


@dataclass
class Part:
    """What one method added: its adapters by site id, and the model's own parameters that it trains by name."""

    method: Method
    adapters: dict[str, Adapter]
    own: dict[str, nn.Parameter]
    base: dict[str, Tensor] | None = None
    """The values of `changed` before; None where they were not kept."""
    shared: nn.Module | None = None
    """The module that the adapters share."""
    tuned: dict[str, Tensor] | None = None
    """The part's values of `changed` while the base's are in place; None while the part is switched on."""
    settled: dict[str, Tensor] = field(default_factory=dict)
    """Frozen tensors of the model, by name, that hold what the adapters' start left of them."""

    @property
    def changed(self) -> dict[str, Tensor]:
        """The model's own tensors that the part gives other values."""
        return {**self.own, **self.settled}

    @property
    def lasts(self) -> bool:
        """Whether it acts outside of training too."""
        return bool(self.own) or not all(adapter.training_alone for adapter in self.adapters.values())

    def settle(self) -> None:
        """Have the adapters write what their start leaves of frozen weights, once; the old values are in `base`."""
        if self.settled or not self.method.splits_base:
            return
        for adapter in self.adapters.values():
            self.settled |= {key: tensor for key, tensor in adapter.site.frozen() if not tensor.requires_grad}
        if self.base is not None:
            self.base |= {name: tensor.detach().clone() for name, tensor in self.settled.items()}
        for adapter in self.adapters.values():
            adapter.settle()

    def built(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over (key, tensor) of what is beside the model's own: `<site>/<tensor>` and `shared/<tensor>`."""
        for site, adapter in self.adapters.items():
            for key, tensor in adapter.state_dict(keep_vars=True).items():
                yield f"{site}/{key}", tensor
        for key, tensor in self.shared.state_dict(keep_vars=True).items() if self.shared is not None else ():
            yield f"shared/{key}", tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over (key, tensor): those that are `built`, and `own/<name>`."""
        yield from self.built()
        for name, parameter in self.own.items():
            yield f"own/{name}", parameter if self.tuned is None else self.tuned[name]

    def undecayed(self) -> set[str]:
        """Return the keys of `tensors` that weight decay leaves alone beside vectors."""
        beside = [*self.adapters.items(), *([] if self.shared is None else [("shared", self.shared)])]
        return {f"{place}/{name}" for place, module in beside for name in undecayed(module)}

    def factors(self) -> list[tuple[str, str]]:
        """List the keys of factors A and B of which an adapter is the product."""
        return [
            (f"{site}/{down}", f"{site}/{up}")
            for site, adapter in self.adapters.items()
            for down, up in factors(adapter)
        ]

    def switch(self, on: bool) -> None:
        """Put the part's (on) or the base's values (off) into the model's own tensors that the part changes."""
        if not self.changed or on == (self.tuned is None):
            return
        if self.base is None:
            raise PeftkitError(
                f"the method '{self.method.name}' changed the model's own weights and the base's were not kept: "
                "load the base model again."
            )
        with torch.no_grad():
            if on:
                assert self.tuned is not None
                for name, tensor in self.changed.items():
                    tensor.data = self.tuned[name]
                self.tuned = None
            else:
                self.tuned = {name: tensor.data for name, tensor in self.changed.items()}
                for name, tensor in self.changed.items():
                    tensor.data = self.base[name].clone()
