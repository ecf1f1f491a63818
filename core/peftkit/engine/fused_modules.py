"""Where `peftkit.kernels.elementwise` stands in for a model's own code: chosen by structure, and tried beforehand.

What is tried is a twin of a module, with random weights, so that weights are neither needed nor looked at; a module
whose twin computes anything else, forward or backward, keeps its own code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from peftkit.engine.proof import TOKENS, Draw, Kinds, attributes, same, twin
from peftkit.errors import PeftkitError
from peftkit.kernels.elementwise import gated, norm, rotated
from peftkit.kernels.recompute import Recompute
from peftkit.layout import Layout
from peftkit.ports.seat import Seat

ROTARY = "apply_rotary_pos_emb"
"""What modelling code calls the function that turns queries and keys by their positions."""
FACTORS: tuple[Callable[[Tensor], Tensor], ...] = (lambda weight: weight, lambda weight: 1 + weight)
"""What norms multiply by, given their weight."""
WIDTH = 16
"""Of what is tried beside norms."""


class _Norm(NamedTuple):
    module: nn.Module
    factor: Callable[[Tensor], Tensor]
    eps: float


class _Gated(NamedTuple):
    """A feed-forward part and the names of its children."""

    module: nn.Module
    gate: str
    up: str
    down: str
    activation: str


class FusedModules:
    """The places of one model where something stands in, within `running`.

    Frozen norms of the root mean square, feed-forward parts down(activation(gate(x)) * up(x)), and the function that
    turns queries and keys. Modules that are seats of adapters, or run otherwise already, are passed by.
    """

    def __init__(self, model: nn.Module):
        layout = Layout(model)
        self.recompute = Recompute()
        kinds = Kinds()
        self.norms = _norms(kinds, [layout.modules[path] for path in layout.norms()])
        self.gated = [place for path in _hidden(layout, "mlp") if (place := _gated(kinds, layout, path)) is not None]
        self.rotary = _rotary(kinds, [layout.modules[path] for path in _hidden(layout, "attention")])
        self.left_off = kinds.left_off
        """What has the form of something that is stood in for, and computes something else."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Stand in inside, in forward and backward passes; where no gradients are wanted the model runs as it is."""
        if not torch.is_grad_enabled():
            yield
            return
        taken: list[nn.Module] = []
        turned = [(names, own) for names, own in self.rotary if names[ROTARY] is own]
        try:
            for place in self.norms:
                if _bare(place.module) and not cast(Tensor, place.module.weight).requires_grad:
                    taken.append(_put(place.module, partial(self._norm, place)))
            for place in self.gated:
                if _bare(place.module) and not _heard(getattr(place.module, place.activation)):
                    taken.append(_put(place.module, partial(self._gated, place)))
            for names, own in turned:
                names[ROTARY] = partial(_rotate, own)
            with self.recompute.running():
                yield
        finally:
            for module in taken:
                del module.__dict__["forward"]
            for names, own in turned:
                names[ROTARY] = own

    def _norm(self, place: _Norm, *args: Any, **named: Any) -> Any:
        weight = cast(Tensor, place.module.weight)
        if named or len(args) != 1 or args[0].dtype != weight.dtype:
            return type(place.module).forward(place.module, *args, **named)
        return norm(self.recompute, args[0], place.factor(weight), place.eps)

    def _gated(self, place: _Gated, *args: Any, **named: Any) -> Any:
        if named or len(args) != 1:
            return type(place.module).forward(place.module, *args, **named)
        gate, up, down, activation = (getattr(place.module, name) for name in place[1:])
        one, other = gate(args[0]), up(args[0])
        alike = one.dtype == other.dtype and one.shape == other.shape
        return down(gated(self.recompute, one, other, activation) if alike else activation(one) * other)


def _rotate(own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
    if rest or named or not q.dtype == k.dtype == cos.dtype == sin.dtype or q.shape[-1] != cos.shape[-1]:
        return own(q, k, cos, sin, *rest, **named)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return rotated(q, cos, sin), rotated(k, cos, sin)


def _bare(module: nn.Module) -> bool:
    return not isinstance(module, Seat) and "forward" not in module.__dict__


def _put(module: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    module.__dict__["forward"] = forward
    return module


def _heard(module: nn.Module) -> bool:
    """Say whether hooks hear of a module's run, other than those that only watch."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return any(not hasattr(hook, "watches") for kind in kinds for hook in getattr(module, kind).values())


def _hidden(layout: Layout, role: str) -> list[str]:
    try:
        return [site.path for site in layout.hidden(role)]
    except PeftkitError:
        return []


# What is there, and tried -------------------------------------------------------------------------------------------


def _norms(kinds: Kinds, modules: Sequence[nn.Module]) -> list[_Norm]:
    """Return those of the norms that are a product with the root of a mean square and a factor."""
    norms = []
    for module in modules:
        numbers = tuple(value for value in vars(module).values() if isinstance(value, float))
        weight = module._parameters.get("weight")
        alone = len(module._parameters) == 1 and not module._buffers and not module._modules
        if isinstance(module, Seat) or not alone or weight is None or weight.dim() != 1:
            continue
        ways = [(factor, eps) for factor in FACTORS for eps in numbers]
        more = len(weight), weight.dtype, weight.device
        way = kinds.way(module, more, ways, partial(_is_norm, module, weight))
        if way is not None:
            norms.append(_Norm(module, *way))
    return norms


def _is_norm(module: nn.Module, like: Tensor, factor: Callable[[Tensor], Tensor], eps: float) -> bool:
    device = "cpu" if like.device.type == "meta" else like.device
    draw = Draw()
    # Rows so small that what is added to their mean square counts, and rows that are not.
    x = (draw(3, TOKENS, len(like)) + 0.5) * torch.tensor([eps**0.5, 1.0, 30.0])[:, None, None]
    weight = draw(len(like))
    for dtype in {torch.float32, like.dtype}:
        mine, given = weight.to(device, dtype), x.to(device, dtype)
        other = twin(module, parameters={"weight": nn.Parameter(mine, requires_grad=False)})
        own = partial(type(module).forward, other)
        if not same(own, lambda x, mine=mine: norm(Recompute(), x, factor(mine), eps), given):
            return False
    return True


def _gated(kinds: Kinds, layout: Layout, path: str) -> _Gated | None:
    """Return the feed-forward part at `path` if it is a product with an activation between linear maps."""
    module = layout.modules[path]
    children = dict(module.named_children())
    inner = [site for site in layout.linears if site.rows is None and site.path.startswith(f"{path}.")]
    roles = {site.role: site.path.removeprefix(f"{path}.") for site in inner}
    names = [roles.get(role, "") for role in ("gate", "up", "down")]
    rest = [name for name in children if name not in names]
    if isinstance(module, Seat) or any(name not in children for name in names) or len(rest) != 1:
        return None
    place = _Gated(module, *names, *rest)
    activation = children[place.activation]
    if isinstance(activation, Seat) or next(activation.parameters(), None) is not None:
        return None
    more = (*place[1:], *attributes(activation))
    return kinds.way(module, more, [(place, activation)], _is_gated) and place


def _is_gated(place: _Gated, activation: nn.Module) -> bool:
    draw = Draw()
    gate, up, down = (_linear(draw) for _ in range(3))
    children = dict(zip(place[1:], (gate, up, down, activation), strict=True))
    other = twin(place.module, modules=children)
    # What is left out at random is left out of training alone.
    other.training = True
    own = partial(type(place.module).forward, other)
    return same(own, lambda x: down(gated(Recompute(), gate(x), up(x), activation)), draw(1, TOKENS, WIDTH))


def _linear(draw: Draw) -> nn.Linear:
    linear = nn.Linear(WIDTH, WIDTH, device="meta")
    linear.weight, linear.bias = (nn.Parameter(draw(*size), False) for size in ((WIDTH, WIDTH), (WIDTH,)))
    return linear


def _rotary(kinds: Kinds, modules: Sequence[nn.Module]) -> list[tuple[dict[str, Any], Callable[..., Any]]]:
    """Return the names of the modelling modules of attention in which ROTARY turns as `rotated` does, and that."""
    places: list[tuple[dict[str, Any], Callable[..., Any]]] = []
    seen: set[int] = set()
    for module in modules:
        kind = type(module).__mro__[2] if isinstance(module, Seat) else type(module)
        names = inspect.unwrap(kind.forward).__globals__
        own = names.get(ROTARY)
        if own is None or id(names) in seen:
            continue
        seen.add(id(names))
        draw = Draw()
        q, cos, sin = draw(1, 4, TOKENS, WIDTH), draw(1, TOKENS, WIDTH), draw(1, TOKENS, WIDTH)

        def both(turn: Callable[..., Any], x: Tensor, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
            return torch.cat(turn(x, x[:, :2], cos, sin), 1)

        if same(partial(both, own), partial(both, partial(_rotate, own)), q):
            places.append((names, own))
        else:
            kinds.left_off.append(f"{ROTARY} of {names['__name__'].rpartition('.')[2]}")
    return places
