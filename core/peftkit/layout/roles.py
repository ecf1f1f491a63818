"""The roles of the linear maps in a part of a layer, by their names; the parts of fused maps one by one."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from peftkit.layout.sites import Rows, own_class
from peftkit.quantization.weight import shape

Deep = Literal["none", "highest", "every"]
MODELS = "modeling_"
"""Begins the names of files with the code of models; layers of storage formats are defined elsewhere."""
QUERIES = ("q", "k", "v", "q_a", "q_b", "kv_a", "kv_b")
"""The roles that make a mixer one of queries and keys."""


@dataclass(frozen=True)
class Role:
    """A linear map and the role of it, or of the rows that are meant."""

    path: str
    role: str
    rows: Rows | None = None


def roles_in(
    home: str,
    maps: Sequence[str],
    roles: Sequence[str],
    names: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    deep: Deep = "highest",
) -> list[Role]:
    """Return the linear maps of these roles among those at `maps`, which lie in `home`, in the order of the roles.

    `deep` says which of the maps further below have a role that none at the top has.
    """
    below = {path.removeprefix(f"{home}."): path for path in maps}
    fused = _fused(below, roles, names["fused"], modules, deep)
    found: list[Role] = []
    for role in roles:
        if role in fused:
            found += fused[role]
            continue
        taken = {one.path for one in found}
        paths = [path for path in _named(below, names.get(role, ()), deep) if path not in taken]
        found += [Role(path, role) for path in paths]
    return found


def rows_of(total: int, parts: Sequence[str], order: str | int, config: Any) -> dict[str, Rows]:
    """Return the rows of each part of a fused map with `total` outputs, in an order as the table of names gives it."""
    if isinstance(order, int):
        run, each = total // order, total // (order * len(parts))
        return {role: Rows(index * each, each, run, order) for index, role in enumerate(parts)}
    lengths, runs = [total // len(parts)] * len(parts), 1
    if "q" in parts:
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        size = total // (heads + 2 * groups)
        if order == "grouped":
            # How many groups there are the number of rows tells, where several keys of a configuration would have to.
            size = getattr(config, "head_dim", None) or config.hidden_size // heads
            groups = runs = max(1, (total // size - heads) // 2)
        lengths = [heads * size // runs, groups * size // runs, groups * size // runs]
    starts = [sum(lengths[:index]) for index in range(len(parts))]
    run = sum(lengths) if runs > 1 else total
    return {role: Rows(start, length, run, runs) for role, start, length in zip(parts, starts, lengths, strict=True)}


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear map of its last dimension.

    A class of linear layers that a model's own code derives may compute something else, such as one map for each
    group of heads or the choice of experts: the shape of its output tells, without a weight being read.
    """
    sizes, own = shape(module), cast(Any, own_class(module))
    derived = issubclass(own, nn.Linear) and own.forward is not nn.Linear.forward
    if sizes is None or not derived or MODELS not in own.__module__:
        return sizes is not None
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = {
        key: None if value is None else nn.Parameter(torch.empty(value.shape, device="meta"), requires_grad=False)
        for key, value in module._parameters.items()
    }
    try:
        forward: Any = own.forward
        output = forward(twin, torch.empty(1, 3, sizes[1], device="meta"))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(output, torch.Tensor) and tuple(output.shape) == (1, 3, sizes[0])


def _named(below: Mapping[str, str], patterns: Sequence[str], deep: Deep = "highest") -> list[str]:
    """Return the maps of the first pattern that names some at the top, or else of those that it names below."""
    for pattern in patterns:
        forms = (pattern, f"{pattern}.linear")
        top = [path for name, path in below.items() if any(fnmatch.fnmatchcase(name, form) for form in forms)]
        if top:
            return top
    for pattern in patterns if deep != "none" else ():
        found = [name for name in below if fnmatch.fnmatchcase(name, f"*.{pattern}")]
        if found:
            depth = min(name.count(".") for name in found)
            return [below[name] for name in found if deep == "every" or name.count(".") == depth]
    return []


def _fused(
    below: Mapping[str, str],
    roles: Sequence[str],
    table: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    deep: Deep,
) -> dict[str, list[Role]]:
    for name, (parts, order) in table.items():
        if not set(parts) <= set(roles):
            continue
        fused: dict[str, list[Role]] = {}
        for path in _named(below, (name,), deep):
            config: Any = modules[""].config
            config = config.get_text_config() if hasattr(config, "get_text_config") else config
            total = (shape(modules[path]) or (0, 0))[0]
            for role, rows in rows_of(total, parts, order, config).items():
                fused.setdefault(role, []).append(Role(path, role, rows))
        if fused:
            return fused
    return {}
