"""PTP trains a soft prompt on texts whose embeddings are perturbed as well (Chen et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge
from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import METHODS, Method
from peftkit.ports.adapter import Adapter, Call


@dataclass(frozen=True, kw_only=True)
class Regularised(Method):
    """A soft prompt `of` any method, and beside it what its training is regularised with: the last of the parts."""

    port: ClassVar[str] = "as its prompt"
    family: ClassVar[str] = "soft prompt"
    mergeable: ClassVar[bool] = False
    shares_passes: ClassVar[bool] = False

    of: dict[str, dict[str, Any]] | str = "prompt-tuning"
    """The soft prompt that is trained: a method's name, or the name with options, as in {p-tuning-v2: {length: 4}}."""

    @property
    def prompt(self) -> Method:
        """The method of the prompt; PeftkitError for what is none."""
        named = {self.of: {}} if isinstance(self.of, str) else self.of
        if len(named) != 1:
            raise PeftkitError(f"{self.name}: of has {len(named)} methods, and one soft prompt is wanted.")
        ((name, options),) = named.items()
        cls = METHODS[name]
        if cls.family != "soft prompt" or issubclass(cls, Regularised):
            able = [each for each, other in METHODS.items() if other.family == "soft prompt"]
            able = [each for each in able if not issubclass(METHODS[each], Regularised)]
            raise PeftkitError(f"{self.name}: '{name}' is no soft prompt: set of to one of {', '.join(able)}.")
        rate = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return cls.from_options({**rate, **options})

    def _of(self, method: Method) -> Regularised:
        return self if method == self.prompt else replace(self, of={method.name: method.options()})

    def with_tokenizer(self, tokenizer: Any) -> Method:
        return self._of(self.prompt.with_tokenizer(tokenizer))

    @property
    def finished(self) -> Regularised:
        return self._of(self.prompt.finished)


@dataclass(frozen=True, kw_only=True)
class PTP(Regularised, name="ptp"):
    """The loss L(E(x)) + L(E(x) + d): each micro-batch runs twice, the second time with perturbed embeddings of texts.

    `random`: d is drawn from N(0, epsilon^2) for each number of each token. `adversarial`: d is `epsilon` times the
    direction of the loss's gradient at each token's embedding, which the first pass finds: one step of projected
    ascent in a ball of that radius. Losses of validation are L(E(x)) alone. The paper also perturbs the words of
    texts; that is left to the data.
    """

    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2305.02423"
    summary: ClassVar[str] = (
        "Trains a soft prompt on each batch a second time with perturbed embeddings, which evens out its loss. Any "
        "method of soft prompts can be trained so."
    )
    default_learning_rate: ClassVar[float] = 0.1
    rate_searched: ClassVar[bool] = False
    rate_falls_with_width: ClassVar[bool] = False

    kind: Literal["random", "adversarial"] = "random"
    """Noise, or what raises the loss most."""
    epsilon: Annotated[float, Ge(0)] = 0.1
    """Standard deviation of the noise, or length of the change of each embedding."""

    def parts(self) -> tuple[Method, ...]:
        return (*self.prompt.parts(), Perturbed(kind=self.kind, radius=self.epsilon))


@dataclass(frozen=True, kw_only=True)
class Perturbed(Method):
    """The part that perturbs: an adapter of the embedding that trains nothing."""

    shares_passes: ClassVar[bool] = False
    name: ClassVar[str] = "ptp/perturbation"
    port: ClassVar[str] = "embedding"
    mergeable: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = PTP.default_learning_rate
    rate_falls_with_width: ClassVar[bool] = False

    kind: Literal["random", "adversarial"]
    radius: float

    def sites(self, layout: Layout) -> list[Site]:
        return [layout.embedding()]

    def build(self, site: Site) -> Adapter:
        return Perturbation(site, self)

    def further(self, adapters: Mapping[str, Adapter]) -> Sequence[AbstractContextManager[None]]:
        return [cast(Perturbation, adapter).moved() for adapter in adapters.values()]


class Perturbation(Adapter):
    """Moves the embeddings of texts in the second pass; the first one finds their gradient where that is asked for."""

    training_alone: ClassVar[bool] = True

    def __init__(self, site: Site, method: Perturbed):
        super().__init__(site)
        self.kind, self.radius = method.kind, method.radius
        self.moving = False
        self.watched: Tensor | None = None

    @contextmanager
    def moved(self) -> Iterator[None]:
        """Perturb inside."""
        self.moving = True
        try:
            yield
        finally:
            self.moving, self.watched = False, None

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        if not self.moving and not (self.training and self.kind == "adversarial" and torch.is_grad_enabled()):
            return y
        text = (x < self.site.inputs).unsqueeze(-1).to(y.dtype)
        if not self.moving:
            self.watched = torch.zeros_like(y, requires_grad=True)
            return y + text * self.watched
        return y + text * self.change(y)

    def change(self, y: Tensor) -> Tensor:
        """Return what is added to embeddings y [..., width] of texts."""
        if self.kind == "random":
            return self.radius * torch.randn_like(y)
        gradient = None if self.watched is None else self.watched.grad
        if gradient is None:
            raise PeftkitError("ptp: kind is adversarial, and this training takes no gradients: set kind to random.")
        gradient = gradient.float()
        return (self.radius * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-20)).to(y.dtype)
