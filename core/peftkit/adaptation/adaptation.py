"""What is attached to a model under one name, the same for every method: count, state, groups, switch, merge, hooks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit.adaptation.merge import Merged, merge_module, shift_module
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, own_parameters
from peftkit.method import Method
from peftkit.ports.adapter import Adapter
from peftkit.ports.embedding import SoftPrompt
from peftkit.ports.seat import Switch, unseat
from peftkit.quantization.weight import packed_shape

ATTRIBUTE = "_peftkit"


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

    def settle(self) -> None:
        """Have the adapters write what their start leaves of frozen weights, once; the old values are in `base`."""
        if self.settled or not self.method.splits_base:
            return
        for adapter in self.adapters.values():
            module, path = adapter.site.module, adapter.site.path
            tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            self.settled |= {f"{path}.{key}": tensor for key, tensor in tensors if not tensor.requires_grad}
        if self.base is not None:
            self.base |= {name: tensor.detach().clone() for name, tensor in self.settled.items()}
        for adapter in self.adapters.values():
            adapter.settle()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Iterate over (key, tensor): `<site>/<tensor>` for adapters, `shared/<tensor>`, `own/<name>`."""
        for site, adapter in self.adapters.items():
            for key, tensor in adapter.state_dict(keep_vars=True).items():
                yield f"{site}/{key}", tensor
        for key, tensor in self.shared.state_dict(keep_vars=True).items() if self.shared is not None else ():
            yield f"shared/{key}", tensor
        for name, parameter in self.own.items():
            yield f"own/{name}", parameter if self.tuned is None else self.tuned[name]

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


@dataclass
class Attached:
    """What stands at the root of an adapted model: the switch its seats read, and its adaptations by name."""

    switch: Switch = field(default_factory=Switch)
    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    """Which of the model's own parameters took gradients before the first adaptation."""


class Adaptation:
    """The methods attached to a model under one name; made by `attach`."""

    def __init__(self, model: nn.Module, layout: Layout, parts: list[Part], name: str, chosen: tuple[Method, ...]):
        self.model = model
        self.layout = layout
        self.parts = parts
        self.name = name
        self.chosen = chosen
        """The methods as they were given to `attach`: a named combination is one of them."""
        self.modules: dict[str, nn.Module] = {}
        """Modules that are trained beside the adapters, by the name that their tensors have in the state."""
        self._merged: list[Merged] | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """The attached methods in the order of the recipe; the parts of a named combination stand one by one."""
        return tuple(part.method for part in self.parts)

    @property
    def described(self) -> tuple[Method, ...]:
        """The registered methods whose parts are `methods`: what is written beside the tensors."""
        left = iter(self.methods)
        groups = [(method, [next(left) for _ in method.parts()]) for method in self.chosen]
        return tuple(one for method, parts in groups for one in method.joined(parts))

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
        modules = [a for part in self.parts for a in (*part.adapters.values(), part.shared) if a is not None]
        return base + sum(parameter.numel() for module in modules for parameter in module.parameters())

    @property
    def soft_ids(self) -> tuple[int, ...]:
        """The ids of soft prompt rows that stand in front of every text; without those that are switched off."""
        adapters = (adapter for part in self.parts for adapter in part.adapters.values())
        prompts = (adapter for adapter in adapters if isinstance(adapter, SoftPrompt) and adapter.enabled)
        return tuple(index for prompt in prompts for index in prompt.ids)

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
        for position, part in enumerate(self.parts):
            for site, adapter in part.adapters.items():
                prefix = f"{position}/{site}/"
                adapter.fit({k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})
        own = dict(self._tensors())
        missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
        if missing or unexpected:
            told = [f"lacks {missing[0]} ({len(missing)} in all)"] if missing else []
            told += [f"has the unexpected {unexpected[0]} ({len(unexpected)} in all)"] if unexpected else []
            raise PeftkitError(f"the adapter's tensors {' and '.join(told)}: it was made for another model or method.")
        for key, tensor in tensors.items():
            if tensor.shape != own[key].shape:
                raise PeftkitError(
                    f"the adapter's tensor {key} has the shape {list(tensor.shape)}, and {list(own[key].shape)} is "
                    "wanted."
                )
            position = key.partition("/")[0]
            settled = position.isdecimal() and self.parts[int(position)].settled
            is_settled = settled and not own[key].requires_grad
            if is_settled and not torch.equal(own[key], tensor.to(own[key])):
                raise PeftkitError(
                    f"the adapter's tensor {key} tells another start than the one that was taken out of the model's "
                    "weights: attach with loading=True and load the tensors then."
                )
        with torch.no_grad():
            for key, tensor in tensors.items():
                own[key].copy_(tensor)
        for part in self.parts:
            part.settle()

    def groups(self, learning_rate: float | None, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups: each method's own learning rate, and no weight decay on vectors.

        A method's rate is its option `learning_rate`, else the given one, else its own for the width of the model.
        """
        asked: list[dict[str, Any]] = []
        rate = learning_rate
        for position, part in enumerate(self.parts):
            rate = part.method.learning_rate or learning_rate or part.method.rate(self.layout.width)
            asked += part.method.groups(self.layout, self._parameters(f"{position}"), rate)
        asked += [{"params": self._parameters(name), "lr": learning_rate or rate} for name in self.modules]
        groups = []
        for group in asked:
            for is_vector, decay in ((False, weight_decay), (True, 0.0)):
                chosen = [(key, p) for key, p in group["params"] if (p.ndim < 2) == is_vector]
                if chosen:
                    named = {"params": [p for _, p in chosen], "keys": [key for key, _ in chosen]}
                    groups.append({**group, **named, "weight_decay": decay})
        return groups

    def _parameters(self, prefix: str) -> list[tuple[str, nn.Parameter]]:
        return [(key, parameter) for key, parameter in self.parameters() if key.startswith(f"{prefix}/")]

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base model inside, bit for bit."""
        switch = attached(self.model).switch
        before = switch.active
        switch.activate([name for name in before if name != self.name])
        try:
            for part in self.parts:
                part.switch(on=False)
            yield
        finally:
            switch.activate(before)
            for part in self.parts:
                part.switch(on=self.name in before)

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
        if self._merged is not None:
            raise PeftkitError("a part of a merged adaptation cannot be switched off: call unmerge_ first.")
        switch = attached(self.model).switch
        off = [self.parts[position] for position in positions]
        changed = [part for part in off if part.own and part.tuned is None]
        running = [adapter for part in off for adapter in part.adapters.values() if adapter.enabled]
        try:
            for part in changed:
                part.switch(on=False)
            for adapter in running:
                adapter.enabled = False
            switch.notify()
            yield
        finally:
            for part in changed:
                part.switch(on=True)
            for adapter in running:
                adapter.enabled = True
            switch.notify()

    def remove(self) -> None:
        """Take the adaptation off: the module tree, the base's weights and their need of gradients are as before."""
        root = attached(self.model)
        if self._merged is not None:
            self.unmerge_()
        for part in self.parts:
            part.switch(on=False)
            for adapter in part.adapters.values():
                unseat(adapter.site.module, self.name)
        self._drop_shared()
        del root.adaptations[self.name]
        root.switch.activate([name for name in root.switch.active if name != self.name])
        if not root.adaptations:
            for name, parameter in own_parameters(self.model):
                parameter.requires_grad_(root.trainable[name])
            delattr(self.model, ATTRIBUTE)

    def merge_(self, *, keep_base: bool = True) -> None:
        """Merge into the model's weights in place, in fp32, one module at a time; cast once to the module's dtype.

        With `keep_base` the old weights are kept for `unmerge_`. Raises PeftkitError with nothing changed where a
        method cannot merge or an adapter holds NaN or infinity.
        """
        merged = [merge_module(self.model, adapters, keep_base) for adapters in self._to_merge()]
        self._merged = merged if keep_base else []
        attached(self.model).switch.merged.add(self.name)

    def merge_packed_(self) -> None:
        """Merge into the stored scales and zero points in place: every code stays as it is, and the model as small.

        The change of a weight is exact but for the rounding of its new scales and zero points to fp32. Undone by
        `unmerge_`. Raises PeftkitError with nothing changed where an adapter has no equal there, or another adaptation
        is attached.
        """
        others = [name for name in attached(self.model).adaptations if name != self.name]
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
        attached(self.model).switch.merged.add(self.name)

    def _to_merge(self) -> list[list[Adapter]]:
        """Return the adapters by module; PeftkitError where a method cannot merge or a value is not finite."""
        for part in self.parts:
            if not part.method.mergeable:
                raise PeftkitError(
                    f"the method '{part.method.name}' cannot be merged into the model's weights: keep the adapter "
                    "beside the "
                    "model, and generate and evaluate from the run folder."
                )
        for key, tensor in self._tensors():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise PeftkitError(f"the adapter's tensor {key} holds NaN or infinity: nothing was merged.")
        seats: dict[str, list[Adapter]] = {}
        for part in self.parts:
            for adapter in part.adapters.values():
                seats.setdefault(adapter.site.path, []).append(adapter)
        return list(seats.values())

    def unmerge_(self) -> None:
        """Undo `merge_` or `merge_packed_`: the base's weights are back bit for bit and the adapters run again."""
        if self._merged is None:
            raise PeftkitError("nothing is merged: there is nothing to undo.")
        for merged in self._merged:
            merged.restore()
        self._merged = None
        attached(self.model).switch.merged.discard(self.name)

    def finish(self) -> None:
        """Bring the adapters to the form that is saved: to be called once, after the last step."""
        for part in self.parts:
            part.method = part.method.finish(part.adapters)

    def _drop_shared(self) -> None:
        seated = self.model.__dict__["_modules"].get("seated")
        for part in self.parts:
            if part.shared is not None and seated is not None:
                seated.pop(next(key for key, module in seated.items() if module is part.shared))
        if seated is not None and not len(seated) and any(part.shared is not None for part in self.parts):
            del self.model.seated

    def prepare(self, batches: Iterable[Any]) -> None:
        """Let each method look at the model and the batches of an epoch before a run's first step; not on resuming."""
        for part in self.parts:
            part.method.prepare(self.model, part.adapters, batches)

    def penalty(self) -> Tensor | None:
        """Return the sum of the methods' terms for the loss, or None where no method has one."""
        terms = [term for part in self.parts if (term := part.method.penalty(part.adapters)) is not None]
        return torch.stack(terms).sum() if terms else None

    def after_backward(self, step: int, steps: int) -> None:
        """Let each method act on the gradients of a step."""
        for part in self.parts:
            part.method.after_backward(part.adapters, step, steps)

    def after_step(self, step: int, steps: int) -> None:
        """Let each method act after a step."""
        for part in self.parts:
            part.method.after_step(part.adapters, step, steps)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for position, part in enumerate(self.parts):
            for key, tensor in part.tensors():
                yield f"{position}/{key}", tensor
        for name, module in self.modules.items():
            for key, tensor in module.state_dict(keep_vars=True).items():
                yield f"{name}/{key}", tensor


def attached(model: nn.Module) -> Attached:
    """Return what is attached to a model, or raise PeftkitError where nothing is."""
    root = model.__dict__.get(ATTRIBUTE)
    if root is None:
        raise PeftkitError("the model has no adapter attached.")
    return root
