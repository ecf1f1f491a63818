"""Methods whose tensors are the same in Hugging Face peft: names, options and shapes side by side, one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.delora import DeLoRA
from peftkit.methods.gralora import GraLoRA
from peftkit.methods.hira import HiRA
from peftkit.methods.hiwi import HiWi
from peftkit.methods.loha import LoHa
from peftkit.methods.lokr import LoKr
from peftkit.methods.miss import MiSS

Told = Callable[[Any, Mapping[str, Any]], Config]
"""From a method and its adapters to what the configuration says."""
Read = Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]]
"""From a configuration and the tensors by '<site>/<tensor>' to a method's options."""
ROOT = "base_model"
"""Where tensors stand that all modules share."""
DROPPED = {"rank_dropout": 0.0, "module_dropout": 0.0}


@dataclass(frozen=True)
class Shape:
    """How a tensor is laid there, of a method's options: there and back."""

    there: Callable[[Any, Tensor], Tensor]
    back: Callable[[Any, Tensor], Tensor]


SWAPPED = Shape(lambda _, t: t.transpose(1, 2), lambda _, t: t.transpose(1, 2))


class PlainConverter(Converter):
    """Tensors of whole linear layers, and `shared` ones at the root by their names there.

    `fixed` are options that this project has one value of and refuses others; `derived` tensors follow from the base.
    """

    def __init__(
        self,
        method: type[Any],
        peft_type: str,
        names: Mapping[str, str],
        rule: tuple[Told, Read],
        *,
        needs: tuple[str, ...] = (),
        fixed: Mapping[str, Any] | None = None,
        shapes: Mapping[str, Shape] | None = None,
        shared: Mapping[str, str] | None = None,
        derived: Sequence[str] = (),
    ):
        super().__init__(method, peft_type)
        self.shared, self.names, self.needs = dict(shared or {}), {**names, **(shared or {})}, needs
        self.told, self.options = rule
        self.fixed, self.shapes, self.derived = dict(fixed or {}), dict(shapes or {}), derived

    def write(self, method: Method, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        for adapter in adapters.values():
            check_whole(method, adapter)
        config = self.config(**self.fixed, **self.told(method, adapters), target_modules=sorted(adapters))
        root = next(iter(adapters.values())).shared
        together = {f"{ROOT}.{theirs}": getattr(root, ours).detach() for theirs, ours in self.shared.items()}
        return config, together | self.named((path, self.laid(method, each)) for path, each in adapters.items())

    def laid(self, method: Method, adapter: Any) -> Tensors:
        """Return an adapter's tensors by our names, laid as there."""
        own = {**adapter.state_dict(), **{key: getattr(adapter, key).detach() for key in self.derived}}
        return {key: self.shapes[key].there(method, t) if key in self.shapes else t for key, t in own.items()}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        for key, value in self.fixed.items():
            found = config.get(key, value)
            if found != value and (found or value):
                raise PeftkitError(f"adapter_config.json: {key} is {found!r}, and only {value!r} can be read.")
        state = {
            f"{'shared' if path == ROOT else path}/{name}": tensor
            for path, name, tensor in self.entries(tensors)
            # Modules may name what they share once more.
            if name not in self.derived and (path == ROOT or name not in self.shared.values())
        }
        paths = sorted({key.rpartition("/")[0] for key in state} - {"shared"})
        method = self.method.from_options({**self.options(config, state), "targets": paths})
        for key, tensor in state.items():
            shape = self.shapes.get(key.rpartition("/")[2])
            state[key] = tensor if shape is None else shape.back(method, tensor)
        return method, state


def check_whole(method: Method, adapter: Any) -> None:
    """Refuse an adapter of a part of a module, and of one that is no plain linear."""
    if adapter.site.rows is not None or not isinstance(adapter.site.module, nn.Linear):
        raise PeftkitError(
            f"{method.name}: {adapter.site.id} is part of a fused module or no plain linear, which Hugging Face peft "
            "does not take for this method: use --format merged."
        )


def number(config: Mapping[str, Any], key: str, default: float = 0.0) -> float:
    """Return a number of a configuration; PeftkitError where another thing stands there."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PeftkitError(f"adapter_config.json: {key}: found {value!r}, and a number is wanted.")
    return value


def common(values: Sequence[int], what: str) -> int:
    """Return the one value that all modules have."""
    if len(set(values)) > 1:
        raise PeftkitError(
            f"adapter_model.safetensors: {what} differ between modules ({sorted(set(values))}), and one is read."
        )
    return values[0]


def ranked(dropout: str | None = None, scaled: bool = False) -> tuple[Told, Read]:
    """Return how a rank, a dropout of that name and an alpha are told and read."""

    def told(method: Any, adapters: Mapping[str, Any]) -> Config:
        kept = {dropout: method.dropout} if dropout else {}
        return {"r": method.rank, **kept, **({"alpha": method.alpha} if scaled else {})}

    def read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
        kept = {"dropout": number(config, dropout)} if dropout else {}
        return {"rank": config["r"], **kept, **({"alpha": number(config, "alpha", 8.0)} if scaled else {})}

    return told, read


def plain(method: type[Any], kind: str, names: Mapping[str, str], rule: tuple[Told, Read], **rest: Any) -> None:
    """Register the converter of a method."""
    CONVERTERS.add(method.name, PlainConverter(method, kind, names, rule, **rest))


def _through_told(method: HiWi, adapters: Mapping[str, Any]) -> Config:
    if method.of == "biases":
        raise PeftkitError(f"{method.name}: Hugging Face peft has this method of weights alone: use --format merged.")
    return {"r": method.rank, "scaling": method.scale, "act_fn": method.activation}


def _through_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    scale = float(number(config, "scaling", 1.0))
    return {"rank": config["r"], "scale": scale, "activation": config.get("act_fn", "relu")}


def _kronecker_told(method: LoKr, adapters: Mapping[str, Any]) -> Config:
    sizes = {"r": method.rank, "alpha": method.alpha, "decompose_both": method.decompose_both}
    return {**sizes, "decompose_factor": method.factor or -1}


def _kronecker_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    factor = int(number(config, "decompose_factor", -1))
    both = bool(config.get("decompose_both"))
    sizes = {"rank": config["r"], "alpha": number(config, "alpha", 8.0), "decompose_both": both}
    return {**sizes, "factor": factor if factor > 0 else None}


def _blocks_told(method: GraLoRA, adapters: Mapping[str, Any]) -> Config:
    sizes = {"r": method.rank, "alpha": method.alpha, "gralora_k": method.blocks, "hybrid_r": method.hybrid}
    return {**sizes, "gralora_dropout": method.dropout}


def _blocks_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = {"rank": config["r"], "alpha": number(config, "alpha", 64.0), "dropout": number(config, "gralora_dropout")}
    return {**sizes, "blocks": config.get("gralora_k", 2), "hybrid": config.get("hybrid_r", 0)}


def _bounded_told(method: DeLoRA, adapters: Mapping[str, Any]) -> Config:
    return {"r": method.rank, "delora_lambda": method.strength, "module_dropout": method.dropout}


def _bounded_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    strength, dropout = number(config, "delora_lambda", 15.0), number(config, "module_dropout")
    return {"rank": config["r"], "strength": float(strength), "dropout": float(dropout)}


def _shards_told(method: MiSS, adapters: Mapping[str, Any]) -> Config:
    kind = True if method.variant == "standard" else method.variant
    return {"r": method.rank, "mini_r": method.mini, "miss_dropout": method.dropout, "init_weights": kind}


def _shards_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    kind = config.get("init_weights")
    variant = kind if kind in ("bat", "mini") else "standard"
    sizes = {"rank": config["r"], "dropout": number(config, "miss_dropout"), "variant": variant}
    return {**sizes, **({"mini": config.get("mini_r", 1)} if variant == "mini" else {})}


plain(HiRA, "HIRA", {"hira_A": "A", "hira_B": "B"}, ranked("hira_dropout"), needs=("r",))
plain(
    LoHa,
    "LOHA",
    {"hada_w1_a": "B1", "hada_w1_b": "A1", "hada_w2_a": "B2", "hada_w2_b": "A2"},
    ranked(scaled=True),
    needs=("r", "alpha"),
    fixed=DROPPED,
)
LOKR = {
    f"lokr_w{n}{mine}": f"{key}{ours}"
    for n, key in ((1, "A"), (2, "B"))
    for mine, ours in (("", ""), ("_a", 1), ("_b", 2))
}
plain(LoKr, "LOKR", LOKR, (_kronecker_told, _kronecker_read), needs=("r", "alpha"), fixed=DROPPED)
plain(
    GraLoRA,
    "GRALORA",
    {"gralora_A": "A", "gralora_B": "B", "gralora_A_general.weight": "plain_A", "gralora_B_general.weight": "plain_B"},
    (_blocks_told, _blocks_read),
    needs=("r",),
    shapes={"A": SWAPPED, "B": SWAPPED},
)
plain(
    DeLoRA,
    "DELORA",
    {"delora_A": "A", "delora_B": "B", "delora_lambda": "strength", "delora_w_norm": "norms"},
    (_bounded_told, _bounded_read),
    needs=("r",),
    derived=("norms",),
)
plain(
    HiWi,
    "PEANUT",
    {"peanut_A.weight": "D", "peanut_B.weight": "U"},
    (_through_told, _through_read),
    needs=("r",),
    fixed={"depth": 0},
)
plain(MiSS, "MISS", {"miss_block": "D"}, (_shards_told, _shards_read), needs=("r",))
