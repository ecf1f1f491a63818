"""Families of models: which configurations each takes, how it is loaded, and what its modules are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.errors import PeftkitError
from peftkit.registry import Registry


@dataclass(frozen=True)
class Heads:
    """What attention is given for each token."""

    keys: int
    """Numbers in the keys of all groups together."""
    values: int
    """Numbers in the values of all groups together."""
    groups: int | None = None
    """The heads of keys and values; None where only the sizes of all together are known."""
    shared: bool = False
    """Whether the keys and values are those of another layer."""
    own: bool = False
    """Whether the model's own code computes it, and adapters enter through the cache."""


class Family(ABC):
    """One kind of model: all that differs between kinds before a method is attached."""

    loader: ClassVar[Any]
    """Has `from_config` and `from_pretrained`, as the auto classes of transformers; a folder's code names it."""
    examples: ClassVar[str]
    """What one example of its data is: `text`, turns of which some are trained on."""
    objective: ClassVar[str]
    """What is minimised where a recipe does not say."""

    @abstractmethod
    def architectures(self) -> Collection[str]:
        """Return the `model_type` of every configuration that the loader builds."""

    @abstractmethod
    def refusal(self, config: Any) -> str | None:
        """Say in a sentence why a model of this configuration is of no such family; None where it is of this one."""

    @abstractmethod
    def names(self, architecture: str) -> Mapping[str, Any]:
        """Return the module names of each role, in the form of `configs/layouts/decoder.yaml`."""

    def attentions(
        self, model: Any, known: Callable[[str], Heads | None], sizes: Callable[[Any], tuple[int, int] | None]
    ) -> Mapping[str, Heads]:
        """Return the attention modules that adapters can enter, by path.

        `known` tells what is known of one, and `sizes` (out, in) of a linear map. By default there are none.
        """
        return {}


FAMILIES: Registry[Family] = Registry("family", "peftkit.families")


def family_of(config: Any) -> Family:
    """Return the family that takes a configuration; of one that none takes, that which its folder's code names.

    A module without a configuration counts as one of the first family.
    """
    families = [family for _, family in FAMILIES.items()]
    taking = [family for family in families if config is not None and family.refusal(config) is None]
    return taking[0] if taking else named_in(getattr(config, "auto_map", None)) or families[0]


def check(config: Any, where: str) -> None:
    """Raise PeftkitError with the reasons where no family takes a configuration; `where` names the file or key."""
    reasons = [family.refusal(config) for _, family in FAMILIES.items()]
    if None not in reasons:
        raise PeftkitError(f"{where}: {' '.join(filter(None, reasons))}")


def architectures() -> list[str]:
    """List the architectures of all families."""
    return [name for _, family in FAMILIES.items() for name in family.architectures()]


def named_in(auto_map: Mapping[str, Any] | None) -> Family | None:
    """Return the family for which a folder brings code: its `auto_map` names the loader."""
    return next((family for _, family in FAMILIES.items() if family.loader.__name__ in (auto_map or {})), None)
