"""Which modules of a model are attention that adapters can enter, and how wide the keys and values in them are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from peftkit.errors import PeftkitError
from peftkit.families import Heads

REGISTRY = "ALL_ATTENTION_FUNCTIONS"
"""What modelling code calls the registry of attention functions."""
CACHES = ("past_key_values", "layer_past")
"""What attention of its own code calls the cache that it is given."""
WATCHED = "peftkit-watched"
Sizes = Callable[[Any], tuple[int, int] | None]


class _Seen(NamedTuple):
    """The modules that attend, by path: through the registry of attention functions, and by code of their own."""

    registered: dict[str, nn.Module]
    own: dict[str, nn.Module]


def attentions(model: nn.Module, known: Callable[[str], Heads | None], sizes: Sizes) -> dict[str, Heads]:
    """Return the sizes in each attention of a model by its path, in the model's order.

    What `known` cannot tell of a path is observed in a pass over two tokens, without weights where those are on the
    meta device. Raises PeftkitError where that pass fails.
    """
    seen = _seen(model)
    told = {path: None if _shares(module) else known(path) for path, module in seen.registered.items()}
    missing = {path: seen.registered[path] for path, heads in told.items() if heads is None}
    observed = _observe(model, _Seen(missing, seen.own), sizes) if missing or seen.own else {}
    every = {**{path: heads for path, heads in told.items() if heads is not None}, **observed}
    return {path: every[path] for path, _ in model.named_modules() if path in every}


def frozen_class(module: nn.Module) -> type[nn.Module]:
    """Return the class whose `forward` a module has of its own, below what adapters sit on."""
    defining = (cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return next(cls for cls in defining if not cls.__module__.startswith("peftkit."))


def _seen(model: nn.Module) -> _Seen:
    seen = _Seen({}, {})
    for path, module in model.named_modules():
        if _registered(frozen_class(module)):
            seen.registered[path] = module
        elif _own(frozen_class(module)):
            seen.own[path] = module
    # Beside attention that goes through the registry, what takes a cache is of another kind.
    return _Seen(seen.registered, {}) if seen.registered else seen


def _shares(module: nn.Module) -> bool:
    """Say whether a module may have maps for keys and values that it does not use."""
    return bool(getattr(module, "is_kv_shared_layer", False))


@cache
def _registered(cls: type[nn.Module]) -> bool:
    functions = (inspect.unwrap(value) for value in vars(cls).values() if isinstance(value, FunctionType))
    return any(REGISTRY in function.__code__.co_names for function in functions if isinstance(function, FunctionType))


@cache
def _own(cls: type[nn.Module]) -> bool:
    forward = inspect.unwrap(cls.forward)
    named = set(inspect.signature(forward).parameters)
    return bool(named & set(CACHES)) and "update" in forward.__code__.co_names


def _observe(model: nn.Module, wanted: _Seen, sizes: Sizes) -> dict[str, Heads]:
    paths = {id(module): path for part in wanted for path, module in part.items()}
    found: dict[str, Heads] = {}
    running: list[nn.Module] = []
    keys: list[Tensor] = []

    def note(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **rest: Any) -> Any:
        if id(module) in paths and paths[id(module)] not in found:
            shared = any(key is other for other in keys)
            found[paths[id(module)]] = Heads(*_sizes(key, value), key.shape[1], shared)
        keys.append(key)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    def hold(key: Tensor, value: Tensor) -> None:
        if running:
            found[paths[id(running[-1])]] = Heads(*_sizes(key, value), key.shape[1], own=True)

    device = cast(Any, model).get_input_embeddings().weight.device
    ids, mask = (torch.ones(1, 2, dtype=torch.long, device=device) for _ in range(2))
    own: dict[str, Any] = {"past_key_values": _Noted(hold)} if wanted.own else {}
    AttentionInterface.register(WATCHED, note)
    AttentionMaskInterface.register(WATCHED, _everything)
    fault: Exception | None = None
    # Without weights some look at the values of a mask, and others at those of positions where there is none.
    for given in ({"attention_mask": mask}, {}) if device.type == "meta" else ({"attention_mask": mask},):
        if set(paths.values()) <= set(found):
            break
        try:
            with _undisturbed(model, wanted, running, sizes), torch.no_grad():
                cast(Any, model).base_model(input_ids=ids, **given, **own)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, IndexError) as error:
            fault = error
    left = set(paths.values()) - set(found) if device.type == "meta" else set()
    stated = {path: _stated(model.get_submodule(path)) for path in left}
    found.update({path: heads for path, heads in stated.items() if heads is not None})
    if fault is not None and set(paths.values()) - set(found):
        kind = cast(Any, model).config.model_type
        raise PeftkitError(f"the sizes in the attention of this {kind} model cannot be observed: {fault}.")
    return found


def _stated(module: nn.Module) -> Heads | None:
    """Return the sizes that a module and its configuration state for plain products, where they state all of them."""
    heads = getattr(module, "num_heads", getattr(getattr(module, "config", None), "num_attention_heads", None))
    share, size = (getattr(module, name, None) for name in ("num_key_value_groups", "head_dim"))
    if not (isinstance(heads, int) and isinstance(share, int) and isinstance(size, int)):
        return None
    return Heads(heads // share * size, heads // share * size, heads // share)


def _sizes(key: Tensor, value: Tensor) -> tuple[int, int]:
    return key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]


class _Noted(DynamicCache):
    """A cache that keeps nothing and tells of what it is given."""

    def __init__(self, hear: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self.hear = hear

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.hear(key_states, value_states)
        return key_states, value_states


def _everything(*args: Any, **kwargs: Any) -> Tensor:
    sizes = (kwargs[name] for name in ("q_length", "kv_length"))
    return torch.ones(kwargs["batch_size"], 1, *sizes, dtype=torch.bool, device=kwargs.get("device"))


@contextmanager
def _undisturbed(model: nn.Module, wanted: _Seen, running: list[nn.Module], sizes: Sizes) -> Iterator[None]:
    """Have attention watched inside, and leave the model as it was."""
    configs = [cast(Any, model).config, cast(Any, model).config.get_text_config()]
    before = [config._attn_implementation for config in configs]
    training = [module for module in model.modules() if module.training]
    with ExitStack() as stack:
        for module in wanted.own.values():
            enter = module.register_forward_pre_hook(lambda module, args: running.append(module))
            leave = module.register_forward_hook(lambda module, args, output: running.remove(module))
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        if any(parameter.is_meta for parameter in model.parameters()):
            inner = [module for module in model.modules() if not _attends_inside(module)]
            for module in inner:
                stack.callback(module.__dict__.pop, "forward", None)
                cast(Any, module).forward = partial(_without_weights, module.forward, sizes(module))
        model.eval()
        try:
            for config in configs if wanted.registered else ():
                config._attn_implementation = WATCHED
            yield
        finally:
            for config, implementation in zip(configs, before, strict=True):
                config._attn_implementation = implementation
            for module in training:
                module.training = True


def _attends_inside(module: nn.Module) -> bool:
    return any(_registered(cls) or _own(cls) for cls in map(frozen_class, module.modules()))


def _without_weights(forward: Callable[..., Any], sizes: tuple[int, int] | None, *args: Any, **kwargs: Any) -> Any:
    """Run what is not attention; what cannot run without weights, as experts or packed maps, returns what is as large.

    That is its input, but for a map of known `sizes` (out, in).
    """
    try:
        return forward(*args, **kwargs)
    except (RuntimeError, NotImplementedError):
        x = args[0] if args else next(iter(kwargs.values()))
        return x if sizes is None else x.new_empty(*x.shape[:-1], sizes[0])
