"""What is attached to a model under one name, the same for every method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from peftkit.adaptation.merging import Merging
from peftkit.adaptation.switching import Switching
from peftkit.adaptation.training import Training
from peftkit.errors import PeftkitError
from peftkit.layout import own_parameters
from peftkit.ports.context import Context
from peftkit.ports.seat import unseat

ATTRIBUTE = "_peftkit"


class Adaptation(Merging, Switching, Training):
    """The methods attached to a model under one name; made by `attach`."""

    def beside(self) -> list[str]:
        return list(attached(self.model).adaptations)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the base model alone inside, bit for bit: nothing that is attached to it, whatever rows are routed to.

        Ids of soft prompts are not to be fed. Raises PeftkitError while an adaptation is merged, and where the base's
        weights were not kept.
        """
        root = attached(self.model)
        root.check_unmerged()
        parts = [part for adaptation in root.adaptations.values() for part in adaptation.parts]
        changed = [part for part in parts if part.changed and part.tuned is None]
        try:
            for part in changed:
                part.switch(on=False)
            with self.context.only(None):
                self.context.notify()
                yield
        finally:
            for part in changed:
                part.switch(on=True)
            self.context.notify()

    def remove(self) -> None:
        """Take the adaptation off: the module tree, the base's weights and their need of gradients are as before."""
        root = attached(self.model)
        if self.name in self.context.merged:
            self.unmerge_()
        for part in self.parts:
            part.switch(on=False)
        for adapter in self.adapters():
            unseat(adapter.site.module, self.name)
        for hook in self.hooks:
            hook.remove()
        self._drop_beside()
        self.context.forget(self.name)
        del root.adaptations[self.name]
        self.context.activate([name for name in self.context.active if name != self.name])
        if not root.adaptations:
            for name, parameter in own_parameters(self.model):
                parameter.requires_grad_(root.trainable[name])
            self.context.watchers.clear()
            delattr(self.model, ATTRIBUTE)

    def _drop_beside(self) -> None:
        """Drop what stands at the model's root: modules that adapters share, and children."""
        seated = self.model.__dict__["_modules"].get("seated", {})
        mine = [key for key in seated if key.rpartition("-")[0] == self.name]
        for key in mine:
            del seated[key]
        if mine and not len(seated):
            del self.model.seated


@dataclass
class Attached:
    """What stands at the root of an adapted model: the context its adapters read, and its adaptations by name."""

    context: Context
    adaptations: dict[str, Adaptation] = field(default_factory=dict)
    trainable: dict[str, bool] = field(default_factory=dict)
    """Which of the model's own parameters took gradients before the first adaptation."""

    def check_unmerged(self, name: str | None = None) -> None:
        """Refuse to run the base, or what stands on it, while an adaptation other than `name` is in its weights."""
        for merged in sorted(self.context.merged - {name}):
            raise PeftkitError(
                f"the adapter '{merged}' is merged into the model's weights, which are not the base's: call unmerge_ "
                "first."
            )


def attached(model: nn.Module) -> Attached:
    """Return what is attached to a model, or raise PeftkitError where nothing is."""
    root = model.__dict__.get(ATTRIBUTE)
    if root is None:
        raise PeftkitError("the model has no adapter attached.")
    return root
