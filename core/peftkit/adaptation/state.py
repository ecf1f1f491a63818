"""The tensors of an adaptation by key, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftkit.adaptation.part import Part
from peftkit.errors import PeftkitError
from peftkit.keys import Keys
from peftkit.layout import Layout, own_parameters
from peftkit.method import METHODS, Method, keys_of
from peftkit.ports.adapter import Adapter
from peftkit.ports.context import Context, context_of
from peftkit.ports.embedding import SoftPrompt
from peftkit.quantization.weight import packed_shape


class State:
    """The parts that stand on a model under one name, and their tensors."""

    def __init__(self, model: nn.Module, layout: Layout, parts: list[Part], name: str, chosen: tuple[Method, ...]):
        self.model = model
        self.layout = layout
        self.parts = parts
        self.name = name
        self.chosen = chosen
        """The methods as they were given to `attach`: a named combination is one of them."""
        self.modules: dict[str, nn.Module] = {}
        """Modules that are trained beside the adapters, by the name that their tensors have in the state."""
        self.hooks: list[RemovableHandle] = []
        """What stands at modules of the model that have no adapter, until it is removed."""
        self.children: Mapping[str, Child] = {}
        """Trained adapters of the same base that the adapters were built from, by name."""
        self.went_on_from: Mapping[str, Any] | None = None
        """The trained adapter whose tensors these were at first: `folder`, SHA-256 of `files`, base's `fingerprint`."""

    @property
    def context(self) -> Context:
        """The model's context, which says whether the adaptation runs."""
        return context_of(self.model)

    def adapters(self) -> Iterator[Adapter]:
        """Iterate over the adapters of all parts, in their order."""
        return (adapter for part in self.parts for adapter in part.adapters.values())

    def lasting(self) -> Iterator[Adapter]:
        """Iterate over the adapters that act outside of training too."""
        return (adapter for adapter in self.adapters() if not adapter.training_alone)

    def added(self) -> list[nn.Module]:
        """List the modules beside the model's own: adapters, what they share, and those of the children."""
        added = [*self.adapters(), *(part.shared for part in self.parts if part.shared is not None)]
        return added + [module for child in self.children.values() for module in child.state.added()]

    @property
    def methods(self) -> tuple[Method, ...]:
        """The attached methods in the order of the recipe; the parts of a named combination stand one by one."""
        return tuple(part.method for part in self.parts)

    @property
    def described(self) -> tuple[Method, ...]:
        """The registered methods whose parts are `methods`: what is written beside the tensors."""
        left = iter(self.methods)
        described: list[Method] = []
        for method in self.chosen:
            parts = [next(left) for _ in method.parts()]
            described += parts if all(part.name in METHODS for part in parts) else [method]
        return tuple(described)

    @property
    def trainable(self) -> int:
        """The number of trainable parameters."""
        return sum(parameter.numel() for _, parameter in self.parameters())

    @property
    def total(self) -> int:
        """The number of all parameters, those of this adaptation included; a packed weight counts as a dense one."""
        base = sum(parameter.numel() for _, parameter in own_parameters(self.model))
        packed = (packed_shape(module) for module in self.model.modules())
        base += sum(sizes[0] * sizes[1] for sizes in packed if sizes is not None)
        modules = [*self.added(), *self.modules.values()]
        return base + sum(parameter.numel() for module in modules for parameter in module.parameters())

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """The ids of soft prompt rows that stand in front of every text; without those that are switched off."""
        prompts = (adapter for adapter in self.adapters() if isinstance(adapter, SoftPrompt) and adapter.enabled)
        return tuple(index for prompt in prompts for index in prompt.ids)

    @property
    def keys(self) -> Keys | None:
        """The keys of rows by which its adapters are chosen; None where none are."""
        return keys_of(self.methods)

    @property
    def dropped_ids(self) -> tuple[int, ...]:
        """The ids of soft prompt rows that have been cut, which texts that were encoded before still have."""
        prompts = [adapter for adapter in self.adapters() if isinstance(adapter, SoftPrompt)]
        every = (range(prompt.first, prompt.first + prompt.length) for prompt in prompts)
        kept = {index for prompt in prompts for index in prompt.ids}
        return tuple(index for ids in every for index in ids if index not in kept)

    def moved(self) -> int:
        """Return by how much the positions of the text are raised; each part that is switched on adds its own."""
        parts = ([a.moves for a in part.adapters.values() if a.enabled] for part in self.parts)
        return sum(max(moves, default=0) for moves in parts)

    def notices(self) -> list[str]:
        """Return what a person should know of how the adapters run."""
        heads = [adapter.site.heads for adapter in self.adapters() if adapter.inside]
        if not any(each is not None and each.own for each in heads):
            return []
        kind = self.layout.kind
        return [
            f"{kind} models compute attention in code of their own: adapters enter it by its cache, which is slower."
        ]

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """List (key, parameter) of everything trainable; keys as in `state`."""
        return [(key, cast(nn.Parameter, tensor)) for key, tensor in self._tensors() if tensor.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Return the adaptation's tensors by key `<method's position>/<site>/<tensor>`, in the model's memory."""
        return {key: tensor.detach() for key, tensor in self._tensors()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into the adaptation; a missing, unexpected or misshaped one is a PeftkitError that names it.

        So is a start taken out of frozen weights that is not the one which they lack already.
        """
        own = self.fit(tensors)
        for key, tensor in tensors.items():
            position = key.partition("/")[0]
            settled = position.isdecimal() and self.parts[int(position)].settled
            is_settled = settled and not own[key].requires_grad
            if is_settled and not torch.equal(own[key], tensor.to(own[key])):
                raise PeftkitError(
                    f"the adapter's tensor {key} has another start than the one that was taken out of the model's "
                    "weights: attach with loading=True and load the tensors then."
                )
        with torch.no_grad():
            for key, tensor in tensors.items():
                own[key].copy_(tensor)
        for part in self.parts:
            part.settle()

    def fit(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take on the shapes of tensors, whose values are not looked at; returns the own tensors that they belong to.

        Raises PeftkitError that names one which is missing, unexpected or misshaped.
        """
        for position, part in enumerate(self.parts):
            for site, adapter in part.adapters.items():
                prefix = f"{position}/{site}/"
                adapter.fit({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        own = dict(self._tensors())
        missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
        if missing or unexpected:
            faults = [f"lacks {missing[0]} ({len(missing)} in all)"] if missing else []
            faults += [f"has the unexpected {unexpected[0]} ({len(unexpected)} in all)"] if unexpected else []
            raise PeftkitError(
                f"the adapter's tensors {' and '.join(faults)}: it was made for another model or method."
            )
        for key, tensor in tensors.items():
            if tensor.shape != own[key].shape:
                raise PeftkitError(
                    f"the adapter's tensor {key} has the shape {list(tensor.shape)}, and {list(own[key].shape)} is "
                    "wanted."
                )
        return own

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for position, part in enumerate(self.parts):
            for key, tensor in part.tensors():
                yield f"{position}/{key}", tensor
        for name, module in self.modules.items():
            for key, tensor in module.state_dict(keep_vars=True).items():
                yield f"{name}/{key}", tensor


@dataclass(frozen=True)
class Child:
    """A trained adapter that others are built from; no module seats it."""

    state: State
    origin: Mapping[str, Any]
    """Its `folder`, the SHA-256 of the `files` in it, and the `fingerprint` of its base."""

    def at(self, site: str) -> Adapter | None:
        """Return its adapter at the site of this id; None where it has none."""
        return next((part.adapters[site] for part in self.state.parts if site in part.adapters), None)
