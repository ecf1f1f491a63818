"""The base of every method: its options, what it builds at each site, and the hooks the trainer calls."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Gt

from peftkit.errors import PeftkitError, unknown
from peftkit.layout import Layout, Site
from peftkit.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftkit.ports.adapter import Adapter

METHODS: Registry[type[Method]] = Registry("method", "peftkit.methods")
Targets = str | tuple[str, ...]
TUNED_WIDTH = 192
"""Width of the hidden states of the bundled model, on which default learning rates were searched."""

LARGEST_SIZE = 1 << 20
"""Above every size that is looked at."""


@dataclass(frozen=True)
class Learns:
    """How a method shows that it learns: below `loss` within `steps` at `learning_rate`.

    Four sequences of 12 tokens are learnt by heart by a random decoder of width 32; its loss is above 4.5 before.
    """

    loss: float = 3.0
    steps: int = 60
    learning_rate: float = 3e-2


@dataclass(frozen=True, kw_only=True)
class Method:
    """The options of one method as a recipe writes them; a subclass adds its own and says what it builds.

    Class attributes a subclass sets: `port` (where it attaches), `family`, `paper` (authors, year, arXiv id),
    `summary` (two sentences), `default_learning_rate`, `mergeable`, and `moves_base` where its published
    start changes the logits.
    """

    name: ClassVar[str]
    port: ClassVar[str] = "linear"
    family: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    mergeable: ClassVar[bool] = True
    moves_base: ClassVar[bool] = False
    needs: ClassVar[str | None] = None
    """The trait that the storage of the adapted weights has to have (`Quantizer.traits`); None where any will do."""
    random_in_training: ClassVar[bool] = False
    """Whether its forward pass draws at random in training, beside dropout: two splits of a batch then differ."""
    by_row: ClassVar[bool] = False
    """Whether what it draws for a token goes by the row of the batch: examples are padded then, and not packed."""
    default_learning_rate: ClassVar[float] = 2e-4
    """The rate found best on the bundled model (docs/results/tuning.csv); `rate` says what other models get."""
    rate_falls_with_width: ClassVar[bool] = True
    """Whether it trains matrices that multiply hidden states, and not vectors or prompts alone."""
    size: ClassVar[str | None] = None
    """The option that sets how much is stored (a rank, a width, a length, a share); None where none does."""
    stored_at_most: ClassVar[bool] = False
    """Whether `stored` is a bound, because what training finds decides how much of it is saved."""
    trials: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Further choices of options for which the laws of every method are held."""
    learns: ClassVar[Learns] = Learns()
    not_in_hf_peft: ClassVar[str] = "has no counterpart in Hugging Face peft"
    """Why its adapters are neither written nor read as ones of that library, told behind its name."""

    learning_rate: Annotated[float, Gt(0)] | None = None
    """Learning rate of this method alone; by default that of `train`, or else the one that suits the model's width."""

    def __init_subclass__(cls, name: str | None = None, **rest: Any):
        super().__init_subclass__(**rest)
        if name is not None:
            cls.name = name
            METHODS.add(name, cls)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Method:
        """Build the method from a recipe's options; a PeftkitError tells every unknown key and wrong value at once."""
        allowed = [field.name for field in dataclasses.fields(cls)]
        faults = [f"{cls.name}: {unknown('option', key, allowed)}" for key in options if key not in allowed]
        if faults:
            raise PeftkitError(" ".join(faults))
        return _validate(cls, options)

    def options(self) -> dict[str, Any]:
        """Return the options as plain JSON values, enough to build the method again."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def with_tokenizer(self, tokenizer: Any) -> Method:
        """Return the method with what its options say in words as token ids; called before it is attached."""
        return self

    def parts(self) -> tuple[Method, ...]:
        """Return the methods that stand in its place when it is attached: itself, but for a named combination.

        The parts of a combination are attached, trained and saved one by one, each at its own learning rate unless
        the combination sets one.
        """
        return (self,)

    def joined(self, parts: Sequence[Method]) -> tuple[Method, ...]:
        """Return the methods as which the attached parts are written down: the parts, in their form of the moment.

        A named combination whose parts have no names of their own returns itself, with options that give such parts.
        """
        return tuple(parts)

    # What the method changes ----------------------------------------------------------------------------------------

    def sites(self, layout: Layout) -> list[Site]:
        """Return the places where an adapter is seated; none for methods that train existing parameters only."""
        return []

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

    def count(self, layout: Layout) -> int:
        """Return the number of trainable parameters in closed form, from the sizes of the sites alone."""
        parts = self.parts()
        if parts != (self,):
            return sum(part.count(layout) for part in parts)
        raise TypeError(f"the method '{self.name}' does not state its number of trainable parameters")

    def stored(self, layout: Layout) -> int:
        """Return in closed form how many numbers the adapter saved after training holds; by default what is trained.

        Every number of the file counts: frozen tensors that are saved, and the positions of sparse changes.
        """
        parts = self.parts()
        return self.count(layout) if parts == (self,) else sum(part.stored(layout) for part in parts)

    def sizes(self, layout: Layout) -> Sequence[int]:
        """Return the values that the option `size` may take, from the fewest stored numbers to the most.

        By default these are all whole numbers up to a million; which of them a model refuses, `sites` tells. They
        mean nothing where the option is a share.
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

    # Hooks of the trainer -------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, adapters: Mapping[str, Adapter], batches: Iterable[Any]) -> None:
        """Look at the model and the batches of the first epoch before the first step of a run.

        Batches are made while they are iterated over: one that is not asked for costs nothing. What is found has to
        stand in the adapters' state, because a resumed run does not call this again.
        """

    def penalty(self, adapters: Mapping[str, Adapter]) -> Tensor | None:
        """Return a term added to the loss of every step, or None."""
        return None

    def after_backward(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        """Act on the gradients of optimizer step `step` of `steps`, before clipping."""

    def after_step(self, adapters: Mapping[str, Adapter], step: int, steps: int) -> None:
        """Act after optimizer step `step` of `steps`."""

    def finish(self, adapters: Mapping[str, Adapter]) -> Method:
        """Bring the adapters to the form that is saved after training, and return the method that describes it."""
        return self

    def groups(
        self, layout: Layout, parameters: Sequence[tuple[str, nn.Parameter]], learning_rate: float
    ) -> list[dict[str, Any]]:
        """Return optimizer groups, each `params` as (key, parameter) pairs and `lr`.

        A group may name its `optimizer` and hold that one's options; without, it gets the default one.
        """
        return [{"params": list(parameters), "lr": learning_rate}]

    # Interchange ----------------------------------------------------------------------------------------------------

    def hf_peft(self, adapters: Mapping[str, Adapter], model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration and tensors that Hugging Face peft opens; the default is a refusal."""
        raise PeftkitError(f"the method '{self.name}' {self.not_in_hf_peft}: {self._instead()}.")

    def _instead(self) -> str:
        """Say what to do with an adapter that Hugging Face peft cannot hold."""
        if self.mergeable:
            return "export with --format merged instead"
        return "keep the adapter beside the model, and generate and evaluate from the run folder"

    @classmethod
    def reads_hf_peft(cls, config: Mapping[str, Any]) -> bool:
        """Say whether `from_hf_peft` takes adapters of this configuration; of several, the most derived method does."""
        return str(config.get("peft_type")).lower().replace("_", "-") == cls.name

    @classmethod
    def from_hf_peft(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
    ) -> tuple[Method, dict[str, Tensor]]:
        """Return the method and its state (keys '<site>/<tensor>') from a Hugging Face peft adapter, or refuse."""
        raise PeftkitError(f"the method '{cls.name}' {cls.not_in_hf_peft}: an adapter of that library cannot be read.")


@cache
def _adapter_of(cls: type[Method]) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    cls.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    return TypeAdapter(cls)


def _validate(cls: type[Method], options: Mapping[str, Any]) -> Method:
    from pydantic import ValidationError

    try:
        # The JSON mode is strict about types and still takes a list for a tuple, as YAML needs.
        return _adapter_of(cls).validate_json(json.dumps(dict(options)))
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg'].lower()}, found {fault['input']!r}"
            for fault in error.errors()
        ]
        raise PeftkitError(f"{cls.name}: " + "; ".join(faults)) from None
    except (TypeError, ValueError) as error:
        raise PeftkitError(f"{cls.name}: the options are not plain values ({error}).") from None


def schema(cls: type[Method]) -> dict[str, Any]:
    """Return the JSON schema of a method's options, each with its docstring as description."""
    found = _adapter_of(cls).json_schema()
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base) and issubclass(base, Method):
            # The docstrings of inherited fields stand in the base's source alone.
            for option, facts in _adapter_of(base).json_schema()["properties"].items():
                if "description" in facts:
                    found["properties"][option].setdefault("description", facts["description"])
    return found


def expand(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Put its parts in the place of each named combination."""
    return tuple(part for method in methods for part in method.parts())


def build_methods(choices: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Method, ...]:
    """Build methods from (name, options) pairs."""
    return tuple(METHODS[name].from_options(options) for name, options in choices)
