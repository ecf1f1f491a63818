"""The tree of a model's modules, in which equal layers stand once: what each is, its role, its size, what it shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from peftkit.layout import Layout, Site
from peftkit.layout.roles import is_linear
from peftkit.layout.sites import own_class
from peftkit.quantization.stack import PackedStack, stacks_of
from peftkit.quantization.weight import packed_shape, shape

STACK = "stack"
"""The kind of a branch that is a parameter with the weights of experts."""


@dataclass(frozen=True)
class Branch:
    """A module, or several equal ones that stand side by side, with what is in it."""

    name: str
    """Its name in the module above, such as `q_proj`, or the numbers of equal ones, such as `0-3,8`."""
    kind: str
    """Its class as the model's code has it, or `stack` for the weights of experts that one parameter holds."""
    shape: tuple[int, ...]
    """Of its weight: [out, in] of a linear map, [rows, width] of an embedding, [experts, out, in] or [experts, in, out]
    of a stack; empty where it has none."""
    roles: tuple[str, ...]
    """The roles of it, several where one map holds several parts."""
    beside: int
    """How many stand beside each other in the module above."""
    equal: int
    """How many there are in the whole model."""
    parameters: int
    """Of all equal ones together, with what is inside; what is tied or shared counts where it stands first."""
    notes: tuple[str, ...]
    """What is special about it: fused parts, a tied or shared weight, packed storage, no role."""
    marks: tuple[str, ...]
    """Of the targets or methods that were asked about, those that name it or a part of it."""
    branches: tuple[Branch, ...] = ()

    def lines(self, depth: int = 0) -> Iterator[tuple[int, Branch]]:
        """Iterate over the branch and all below it, each with its depth, in the order of the model."""
        yield depth, self
        for branch in self.branches:
            yield from branch.lines(depth + 1)


@dataclass(frozen=True)
class _Facts:
    """What is known of one module but its name and place."""

    kind: str
    shape: tuple[int, ...]
    roles: tuple[str, ...]
    numbers: int
    notes: tuple[str, ...]
    marks: tuple[str, ...]


class ModuleTree:
    """Reads the branches of a model off its layout; `marks` are words for sites, by the ids of these."""

    def __init__(self, layout: Layout, marks: Mapping[str, Sequence[str]] = {}):
        self.layout, self.marks = layout, marks
        self._signatures: dict[str, Any] = {}
        self._first = {id(module): path for path, module in reversed(layout.modules.items())}
        self._owners = {
            id(parameter): f"{path}.{name}".lstrip(".")
            for path, module in reversed(layout.modules.items())
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

    def branches(self) -> list[Branch]:
        """Return what stands at the top of the model."""
        return self._inside([""])

    @cached_property
    def _sites(self) -> dict[str, list[Site]]:
        """Every site of a linear map, a stack, a part of a layer, a layer or the embedding, by its path."""
        layout = self.layout
        wholes = [site for role in ("attention", "mlp", "block") for site in layout.wholes(role) if site.entry is None]
        found: dict[str, list[Site]] = {}
        for site in [*wholes, *layout.linears, *layout.stacks, layout.embedding()]:
            found.setdefault(site.path, []).append(site)
        return found

    @cached_property
    def _norms(self) -> set[str]:
        return set(self.layout.norms())

    def _inside(self, paths: list[str]) -> list[Branch]:
        """Return the branches below modules that are equal, and have the same below them."""
        first = paths[0]
        groups: dict[Any, list[str]] = {}
        for name, path in self._children(first):
            # What has a name of its own stands by itself; numbered ones are put together.
            key = (name if not name.isdecimal() else None, self._signature(path))
            groups.setdefault(key, []).append(name)
        stacks = [self._stack(paths, site) for site in self._sites.get(first, ()) if site.stack is not None]
        return stacks + [self._branch(paths, names) for names in groups.values()]

    def _branch(self, above: list[str], names: list[str]) -> Branch:
        paths = [_below(path, name) for path in above for name in names]
        facts = self._facts(paths[0])
        inside = self._inside(paths) if self._opens(paths[0]) else []
        stacked = sum(branch.parameters for branch in inside if branch.kind == STACK)
        return Branch(
            name=_numbers(names),
            kind=facts.kind,
            shape=facts.shape,
            roles=facts.roles,
            beside=len(names),
            equal=len(paths),
            # A stack is a parameter of the module itself, and a branch of its own.
            parameters=facts.numbers * len(paths) - stacked + sum(branch.parameters for branch in inside),
            notes=facts.notes,
            marks=facts.marks,
            branches=tuple(inside),
        )

    def _stack(self, paths: list[str], site: Site) -> Branch:
        sizes = tuple(dict(stacks_of(site.module))[str(site.stack)])
        return Branch(
            name=str(site.stack),
            kind=STACK,
            shape=sizes,
            roles=(str(site.role),),
            beside=1,
            equal=len(paths),
            parameters=math.prod(sizes) * len(paths),
            notes=("packed",) if isinstance(site.held, PackedStack) else (),
            marks=tuple(self.marks.get(site.id, ())),
        )

    def _children(self, path: str) -> Iterator[tuple[str, str]]:
        for name, child in self.layout.modules[path]._modules.items():
            if child is not None and name != "seated" and not isinstance(child, PackedStack):
                yield name, _below(path, name)

    def _opens(self, path: str) -> bool:
        """Say whether what is inside a module is its own, and not shown where it stands first."""
        return path in self.layout.modules

    def _module(self, path: str) -> nn.Module:
        return self.layout.modules[path] if path in self.layout.modules else self.layout.model.get_submodule(path)

    def _signature(self, path: str) -> Any:
        """Return what equal modules have in common."""
        if path not in self._signatures:
            inside = []
            if self._opens(path):
                inside = [(name, self._signature(below)) for name, below in self._children(path)]
                inside += [
                    (site.stack, tuple(self.marks.get(site.id, ())))
                    for site in self._sites.get(path, ())
                    if site.stack is not None
                ]
            self._signatures[path] = hash((self._facts(path), tuple(inside)))
        return self._signatures[path]

    def _facts(self, path: str) -> _Facts:
        module = self._module(path)
        kind = own_class(module).__name__
        if not self._opens(path):
            return _Facts(kind, (), (), 0, (f"shared: it is {self._first[id(module)]}",), ())
        sites = [site for site in self._sites.get(path, ()) if site.stack is None]
        roles = tuple(site.role for site in sites if site.role is not None)
        roles = roles or (("norm",) if path in self._norms else ())
        marks = dict.fromkeys(mark for site in sites for mark in self.marks.get(site.id, ()))
        return _Facts(kind, self._shape(module), roles, self._numbers(path), self._notes(path, sites), tuple(marks))

    def _shape(self, module: nn.Module) -> tuple[int, ...]:
        weight = module._parameters.get("weight")
        return shape(module) or (tuple(weight.shape) if weight is not None else ())

    def _numbers(self, path: str) -> int:
        """Count the numbers that a module itself holds and no module before it, a packed weight as a dense one."""
        module = self.layout.modules[path]
        own = sum(
            parameter.numel()
            for name, parameter in module._parameters.items()
            if parameter is not None and self._owners[id(parameter)] == f"{path}.{name}".lstrip(".")
        )
        packed = packed_shape(module) if is_linear(module) else None
        stacks = (child.shape for child in module._modules.values() if isinstance(child, PackedStack))
        return own + (math.prod(packed) if packed is not None else 0) + sum(map(math.prod, stacks))

    def _notes(self, path: str, sites: Sequence[Site]) -> tuple[str, ...]:
        module, notes = self.layout.modules[path], []
        parts = [site for site in sites if site.rows is not None]
        if parts:
            notes.append(f"fused: {', '.join(f'{site.role} {site.outputs}' for site in parts)} outputs")
        for name, parameter in module._parameters.items():
            owner = None if parameter is None else self._owners[id(parameter)]
            if owner is not None and owner != f"{path}.{name}".lstrip("."):
                notes.append(f"{name} tied: it is {owner}")
        if is_linear(module):
            notes += ["packed"] if packed_shape(module) is not None else []
            notes += ["bias"] if module._parameters.get("bias") is not None else []
            if not sites:
                notes.append("no target but a pattern of its name reaches it")
            elif not any(site.role for site in sites):
                notes.append(f"no role, in group {sites[0].group}")
        elif not sites and len(self._shape(module)) > 1:
            notes.append("no linear map: no target names it")
        return tuple(notes)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _numbers(names: Sequence[str]) -> str:
    """Write the names of equal modules: numbers as ranges, such as `0-3,8`."""
    if len(names) == 1:
        return names[0]
    ranges: list[list[int]] = []
    for number in map(int, names):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
