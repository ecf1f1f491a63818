"""Full fine-tuning trains every weight of the model: the reference for every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site, names_module, own_parameters
from peftkit.method import Method, Targets


@dataclass(frozen=True, kw_only=True)
class Full(Method, name="full"):
    """Every parameter is trained; a tied weight is one parameter, counted and saved once.

    With `targets` it is those of some modules alone, such as an embedding beside LoRA: `modules_to_save` of Hugging
    Face peft.
    """

    port: ClassVar[str] = "own parameters"
    family: ClassVar[str] = "baseline"
    paper: ClassVar[str] = "the reference of Houlsby et al. 2019, arXiv:1902.00751"
    summary: ClassVar[str] = (
        "Trains every weight of the model. It needs memory for gradients and optimizer states of all of them."
    )
    default_learning_rate: ClassVar[float] = 3.2e-3

    targets: Targets = "all"
    """`all` parameters, or those of modules, and of what is in them, by module-name patterns."""

    def sites(self, layout: Layout) -> list[Site]:
        packed = next((path for path in layout.packed if self._named(path)), None)
        if packed is not None:
            raise PeftkitError(
                f"{self.name}: {packed} keeps its weight in a packed format, which no gradient reaches: load "
                "the model without quantization."
            )
        lacking = next((name for name in self._patterns() if not self._finds(layout, name)), None)
        if lacking is not None:
            raise PeftkitError(
                f"{self.name}: targets: no module with parameters of its own is named '{lacking}' in this "
                f"{layout.kind} model; name one as `peft modules` shows it."
            )
        return []

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return self._named(name.rpartition(".")[0])

    def _patterns(self) -> tuple[str, ...]:
        given = (self.targets,) if isinstance(self.targets, str) else self.targets
        return () if given == ("all",) else given

    def _named(self, path: str) -> bool:
        """Say whether a module or one around it is named."""
        parts = path.split(".")
        around = [".".join(parts[: count + 1]) for count in range(len(parts))]
        patterns = self._patterns()
        return not patterns or any(names_module(pattern, each) for pattern in patterns for each in around)

    def _finds(self, layout: Layout, pattern: str) -> bool:
        one = type(self)(targets=(pattern,))
        return any(one.select(layout, name, parameter) for name, parameter in own_parameters(layout.model))
