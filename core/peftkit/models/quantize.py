"""Which modules of a model are packed, and packing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layout import GROUPS, Layout, Site, names_module
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.packed import PackedLinear, StoredLinear
from peftkit.quantization.quantizer import QUANTIZERS, Quantizer
from peftkit.quantization.stack import PackedStack, matrix, put_dense, put_packed
from peftkit.quantization.storage import in_words
from peftkit.quantization.weight import dense, store
from peftkit.recipe import QuantizationSection

DENSE = "none"
"""The name for weights that stay as they are."""


@dataclass(frozen=True)
class Quantization:
    """A format for every linear layer of the blocks and every stack of experts, and others for those named by pattern.

    They are named as `targets` of methods are: by role, group of roles, or pattern, which names stacks beside linear
    layers; the last that matches decides. None leaves one dense.
    """

    default: Quantizer | None = None
    modules: Mapping[str, Quantizer | None] = field(default_factory=dict)

    @classmethod
    def of(cls, section: QuantizationSection) -> Quantization:
        """Build what a recipe chooses."""
        return cls.described(section.model_dump())

    @classmethod
    def described(cls, storage: Mapping[str, Any]) -> Quantization:
        """Build what `description` returned; an unknown format or option is a PeftkitError."""
        modules = storage.get("modules") or {}
        return cls(_build(storage), {pattern: _build(choice) for pattern, choice in modules.items()})

    def description(self) -> dict[str, Any]:
        """Return plain values: the formats with all their options."""
        modules = {pattern: _choice(quantizer) for pattern, quantizer in self.modules.items()}
        return {**_choice(self.default), "modules": modules}

    def in_words(self) -> str:
        """Describe the formats in a few words."""
        return in_words(self.description())

    @property
    def packs(self) -> bool:
        """Whether any weight is packed."""
        return any(quantizer is not None for quantizer in (self.default, *self.modules.values()))

    @property
    def calibrated(self) -> bool:
        """Whether any format looks at what a layer's inputs are on examples."""
        return any(
            quantizer is not None and quantizer.calibrated for quantizer in (self.default, *self.modules.values())
        )

    @property
    def uncalibrated(self) -> Quantization:
        """The same with the weights of calibrated formats left dense."""
        kept = {pattern: None if one and one.calibrated else one for pattern, one in self.modules.items()}
        return Quantization(None if self.default and self.default.calibrated else self.default, kept)

    def choose(self, layout: Layout) -> dict[str, Quantizer]:
        """Return the format of each module that is packed, by module path, and of each stack, by its site's name.

        Raises PeftkitError for a pattern that matches nothing, and for a layer that shares its weight.
        """
        sites = {site.path: site for site in layout.linears}
        # Layers that share one weight would each have a packed one of their own.
        blocks = (path for path, site in sites.items() if site.role in GROUPS["linear"] and not site.tied)
        stacks = {site.id: site for site in layout.stacks}
        chosen: dict[str, Quantizer | None] = dict.fromkeys([*blocks, *stacks], self.default)
        for pattern, quantizer in self.modules.items():
            try:
                named = layout.resolve(pattern)
            except PeftkitError as error:
                raise PeftkitError(f"quantization: {error}") from None
            matches = {site.path: site for site in named if site.stack is None}
            sites |= matches
            beside = [key for key in stacks if names_module(pattern, key) or names_module(pattern, stacks[key].path)]
            beside += [site.id for site in named if site.stack is not None]
            chosen |= dict.fromkeys([*matches, *beside], quantizer)
        packed = {path: quantizer for path, quantizer in chosen.items() if quantizer is not None}
        tied = next((path for path in packed if path in sites and sites[path].tied), None)
        if tied is not None:
            raise PeftkitError(f"quantization: {tied} shares its weight with another module: leave it at none.")
        return packed


def quantize(model: nn.Module, quantization: Quantization) -> None:
    """Put packed layers in the place of the linear ones that are chosen, and packed stacks, one by one.

    Each keeps its dense weight for starts that are computed from it, until `forget_originals`. Raises PeftkitError with
    the layer whose weight cannot be packed; the layers before it are packed then.
    """
    layout = Layout(model)
    stacks = {site.id: site for site in layout.stacks}
    for path, quantizer in quantization.choose(layout).items():
        if path in stacks:
            stack = cast(Tensor, stacks[path].held).detach()
            turned = stacks[path].transposed
            readers = [partial(matrix, stack, index, turned) for index in range(len(stack))]
            replace_stack(stacks[path], quantizer, readers)
        else:
            weight = dense(model.get_submodule(path)).detach()
            replace(model, path, quantizer, partial(itself, weight))


def replace(
    model: nn.Module,
    path: str,
    quantizer: Quantizer,
    source: Callable[[], Tensor] | None = None,
    inputs: Inputs | None = None,
) -> None:
    """Put a packed layer in the place of the linear one at `path`, packed for `inputs` where they are known.

    `source` reads its dense weight [out, in].
    """
    module = cast(Any, model.get_submodule(path))
    bias = None if module.bias is None else module.bias.detach()
    layer = PackedLinear.of(dense(module).detach(), bias, quantizer, path, inputs)
    layer.source = source
    model.set_submodule(path, layer.train(module.training))


def replace_stack(
    site: Site,
    quantizer: Quantizer,
    readers: Sequence[Callable[[], Tensor]],
    seen: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Put a packed stack in the place of the one at a site, each weight [out, in] packed as its reader gives it.

    `seen` is shown each weight, with its number, as it is read.
    """
    layers = []
    for index, read in enumerate(readers):
        weight = read()
        if seen is not None:
            seen(index, weight)
        layers.append(PackedLinear.of(weight, None, quantizer, f"{site.id}[{index}]"))
        layers[-1].source = read
    put_packed(site.module, str(site.stack), PackedStack(layers, site.transposed))


def unpack(model: nn.Module, like: nn.Module) -> list[str]:
    """Put plain layers, of the classes they have in `like`, in the place of packed ones, with what these stand for.

    It is the same whoever packed them, and a merge that a packed layer holds is kept. `like` is the model without
    weights, on the meta device; its layers are taken. Returns the paths.
    """
    stacks = [path for path, module in model.named_modules() if isinstance(module, PackedStack)]
    for path in stacks:
        owner, _, name = path.rpartition(".")
        put_dense(model.get_submodule(owner), name)
    packed = {path: module for path, module in model.named_modules() if isinstance(module, StoredLinear)}
    for path, module in packed.items():
        weight = dense(module)
        plain: Any = like.get_submodule(path).to_empty(device=weight.device).to(weight.dtype)
        store(plain, weight)
        plain.bias = module.bias
        model.set_submodule(path, plain)
    return [*stacks, *packed]


def forget_originals(model: nn.Module) -> None:
    """Let go of the dense weights: to be called once the adapters stand."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.source = None


def _build(choice: Mapping[str, Any]) -> Quantizer | None:
    name = choice.get("format", DENSE)
    return None if name == DENSE else QUANTIZERS[name].from_options(choice.get("options") or {})


def _choice(quantizer: Quantizer | None) -> dict[str, Any]:
    return {"format": quantizer.name if quantizer else DENSE, "options": quantizer.options() if quantizer else {}}


def itself(weight: Tensor) -> Tensor:
    """Return a dense weight that is kept as it is."""
    return weight
