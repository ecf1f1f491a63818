"""The base of every method: its options, and what it builds at each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from peftkit.errors import PeftkitError
from peftkit.hooks import Hooks
from peftkit.keys import Keys
from peftkit.layout import (
    GROUPS,
    Layout,
    Site,
    Standing,
    left_out,
    names_module,
    otherwise,
    parse_layers,
    standing,
)
from peftkit.options import Options
from peftkit.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from peftkit.ports.adapter import Adapter

METHODS: Registry[type[Method]] = Registry("method", "peftkit.methods")
Targets = str | tuple[str, ...]
TUNED_WIDTH = 192
"""Width of the hidden states of the bundled model, on which default learning rates were searched."""

LARGEST_SIZE = 1 << 20
"""Above every size that is looked at."""

AUXILIARY = (None, "in", "out", "q_a", "q_b", "kv_a", "kv_b")
"""Roles of maps that may be as small as a number for each head."""


@dataclass(frozen=True, kw_only=True)
class Method(Hooks, Options, registry=METHODS):
    """The options of one method as a recipe writes them; a subclass adds its own and says what it builds.

    Class attributes a subclass sets: `port` (where it attaches), `family`, `paper` (authors, year, arXiv id),
    `summary` (two sentences), `default_learning_rate`, `mergeable`.
    """

    port: ClassVar[str] = "linear"
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True
    needs: ClassVar[str | None] = None
    """The trait that the storage of the adapted weights has to have (`Quantizer.traits`); None where any will do."""
    by_row: ClassVar[bool] = False
    """Whether what it draws or computes for a token goes by the row: examples are padded then, and share nothing."""
    shares_passes: ClassVar[bool] = True
    """Whether a pass may hold micro-batches of other runs beside its own, whose losses know nothing of it."""
    default_learning_rate: ClassVar[float] = 2e-4
    """The rate found best on the bundled model (docs/results/tuning.csv); `rate` says what other models get."""
    rate_searched: ClassVar[bool] = True
    """Whether that rate was searched, and not taken over from methods like it, which plans and pages tell."""
    rate_falls_with_width: ClassVar[bool] = True
    """Whether it trains matrices that multiply hidden states, and not vectors or prompts alone."""
    size: ClassVar[str | None] = None
    """The option that sets how much is stored (a rank, a width, a length, a share); None where none does."""

    learning_rate: Annotated[float, Gt(0)] | None = None
    """Learning rate of this method alone; by default that of `train`, or else the one that suits the model's width."""

    def with_tokenizer(self, tokenizer: Any) -> Method:
        """Return the method with what its options say in words as token ids; called before it is attached."""
        return self

    def check_base(self, base: Mapping[str, Any]) -> None:
        """Refuse to start from what was trained on another base than this one, told by its `fingerprint`."""

    def parts(self) -> tuple[Method, ...]:
        """Return the methods that stand in its place when it is attached: itself, but for a named combination.

        The parts of a combination are attached, trained and saved one by one, each at its own learning rate unless
        the combination sets one. They are written down by their names where they have names of their own, and as the
        combination where they do not.
        """
        return (self,)

    def sites(self, layout: Layout) -> list[Site]:
        """Return the places where an adapter is seated; none for methods that train existing parameters only."""
        return []

    def notices(self, layout: Layout) -> list[str]:
        """Say in a line each what a user may not expect of its places in this model; none by default."""
        return []

    @property
    def keys_read(self) -> Keys | None:
        """The keys of examples by which its adapters are chosen, each token by that of its row; None where none are."""
        return None

    @property
    def splits_base(self) -> bool:
        """Whether its adapters start as parts of frozen weights, which keep the rest: the sum is as before."""
        return False

    def share(self, layout: Layout) -> nn.Module | None:
        """Build the module that all adapters of this method share (`adapter.shared`); None by default."""
        return None

    def build(self, site: Site) -> Adapter:
        """Build the adapter of one site; called under a random generator seeded for that site."""
        raise TypeError(f"the method '{self.name}' has sites and does not say how to build an adapter")

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        """Say whether the model's own parameter `name` is trained."""
        return False

    @property
    def finished(self) -> Method:
        """The method that describes what `finish` leaves; itself where training needs nothing more than is saved."""
        return self

    def saved(self, layout: Layout) -> int | None:
        """Return how many numbers are saved at most where training decides it; None: all that `finished` builds."""
        return None

    def sizes(self, layout: Layout) -> Sequence[int]:
        """Return the values that the option `size` may take, from the fewest stored numbers to the most.

        By default all whole numbers up to a million: `sites` refuses some. They mean nothing of a share.
        """
        return range(1, LARGEST_SIZE)

    def rate(self, width: int) -> float:
        """Return the default learning rate for a model whose hidden states are `width` wide.

        An Adam step of one size on each weight of a matrix moves its output by the number of inputs, so that the rate
        found at 192 falls as 192 / width where matrices are trained, and stays for vectors and prompts (Yang et al.
        2022, arXiv:2203.03466, table 3). It never rises above the rate found.
        """
        share = min(1.0, TUNED_WIDTH / width) if self.rate_falls_with_width else 1.0
        return self.default_learning_rate * share


@dataclass(frozen=True, kw_only=True)
class Targeted(Method):
    """A method of linear maps: which of them it changes."""

    by_weight: ClassVar[bool] = False
    """Whether its adapter of a weight knows nothing of others and, without dropout, is its merge in training too.

    Each weight of a stack of experts may have one then (`peftkit.layers.stacked`).
    """
    stacked: ClassVar[tuple[str, ...]] = ()
    """The options whose default names stacks of experts' weights where they end a feed-forward part."""

    targets: Targets = ("q", "v")
    """Roles (q k v o, q_a q_b kv_a kv_b, in out, gate up down, experts, head), groups (attention, mlp, linear) or
    module-name patterns."""
    exclude: tuple[str, ...] = ()
    """Targets to leave out again."""
    layers: tuple[int, ...] | str | None = None
    """Layers to adapt, such as 0-3,8; all by default."""

    def options(self) -> dict[str, Any]:
        # What is done comes before where: labels and pages keep this order.
        options = super().options()
        where = {field.name: options.pop(field.name) for field in fields(Targeted) if field.name != "learning_rate"}
        return {**options, **where}

    def sites(self, layout: Layout) -> list[Site]:
        sites = self.standing(layout).sites
        wrong = next((site.id for site in sites if not self.takes(site)), None)
        if wrong is not None:
            able = [name for name, cls in METHODS.items() if getattr(cls, "by_weight", False)]
            raise PeftkitError(
                f"{self.name}: {wrong} is a stack of the weights of experts, which it does not adapt"
                f"{' with dropout' if self.by_weight else ''}: use one of {', '.join(able)} without dropout, or leave "
                "'experts' out of targets."
            )
        return sites

    def takes(self, site: Site) -> bool:
        """Say whether it can adapt a site: a stack where each of its weights may have an adapter, without dropout."""
        return site.stack is None or (self.by_weight and not getattr(self, "dropout", 0))

    def standing(self, layout: Layout) -> Standing:
        """Return the sites of the targets; where they are the default, those that stand for roles that are missing."""
        layers = parse_layers(self.layers)
        found = self.named(layout, "targets")
        if not found.sites and not self.exclude:
            found = otherwise(layout, _roles(self.targets) or (), layers)
        return found

    def named(self, layout: Layout, option: str) -> Standing:
        """Return the sites that an option names; none where it is the default and the model has nothing of its kind."""
        targets, layers = getattr(self, option), parse_layers(self.layers)
        roles = _roles(targets) if targets == getattr(type(self), option) else None
        if roles is None:
            return Standing(layout.resolve(targets, layers, self.exclude))
        layout.check_layers(layers)
        return standing(layout, roles, layers, self.exclude, stacks=option in self.stacked)

    def fitting(self, site: Site, rank: int) -> int:
        """Return what a small map without a role of its own allows of a rank, where no target names just it."""
        targets = (self.targets,) if isinstance(self.targets, str) else self.targets
        by_group = site.role in AUXILIARY and not any(names_module(target, site.path) for target in targets)
        return min(rank, site.inputs, site.outputs) if by_group else rank

    def notices(self, layout: Layout) -> list[str]:
        found = self.standing(layout)
        covering = {self.targets} if isinstance(self.targets, str) else set(self.targets)
        left = left_out(layout, found.sites) if covering & {"linear", "mlp"} else None
        return [f"{self.name}: {line}" for line in [*found.notices(layout), *([left] if left else [])]]


def _roles(targets: Targets) -> tuple[str, ...] | None:
    """Return targets that are roles of layers and nothing else; None for others."""
    names = (targets,) if isinstance(targets, str) else targets
    return names if set(names) <= set(GROUPS["linear"]) else None


@dataclass(frozen=True, kw_only=True)
class Ranked(Targeted):
    """A method of linear maps whose rank is at most what the smaller side of each allows."""

    size: ClassVar[str | None] = "rank"

    rank: Annotated[int, Ge(1)] = 8
    """Inner size of the low-rank change."""

    def rank_at(self, site: Site) -> int:
        """Return the rank at one site."""
        return self.fitting(site, self.rank)

    def sites(self, layout: Layout) -> list[Site]:
        sites = super().sites(layout)
        for site in sites:
            most = min(site.inputs, site.outputs)
            if self.rank_at(site) > most:
                has_pattern = hasattr(self, "rank_pattern")
                remedy = "give this module its own rank in rank_pattern" if has_pattern else "leave it out of targets"
                raise PeftkitError(
                    f"{self.name}: rank {self.rank_at(site)} is larger than {site.id} [{site.outputs}, {site.inputs}] "
                    f"allows: choose at most {most}, or {remedy}."
                )
        return sites

    def notices(self, layout: Layout) -> list[str]:
        cut = [site for site in self.sites(layout) if self.rank_at(site) == min(site.inputs, site.outputs) < self.rank]
        small = sorted({site.path.rpartition(".")[2] for site in cut if site.role in AUXILIARY})
        lines = [f"{self.name}: the rank is at most that of small maps at {', '.join(small)}"] if small else []
        return super().notices(layout) + lines


def expand(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Put its parts in the place of each named combination."""
    return tuple(part for method in methods for part in method.parts())


def keys_of(methods: Sequence[Method]) -> Keys | None:
    """Return the keys by which adapters of the methods are chosen, None for none; two sets are a PeftkitError."""
    readers = [method for method in expand(methods) if method.keys_read is not None]
    for method in readers[1:]:
        if method.keys_read != readers[0].keys_read:
            raise PeftkitError(
                f"the methods '{readers[0].name}' and '{method.name}' choose adapters by different keys, and an "
                "example has one: give both the same keys, of the same field."
            )
    return readers[0].keys_read if readers else None


def build_methods(choices: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Method, ...]:
    """Build methods from (name, options) pairs."""
    return tuple(METHODS[name].from_options(options) for name, options in choices)
