"""Which adapted modules a model calls: an adapter on one that is passed by would do nothing, and nobody would know.

Some models read the weight of a layer past the layer, as fast paths do; others have layers that nothing reads. Both
show in one pass over a few tokens. Of modules in one list of which others are called, such as experts, which are not
chosen for these tokens, or layers, nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from peftkit.engine.graph import leaves
from peftkit.errors import PeftkitError
from peftkit.ports.seat import Seat

SHOWN = 3
"""How many modules a message names."""


def check_calls(model: nn.Module, logits: Callable[[], Tensor]) -> tuple[Tensor, list[str]]:
    """Return `logits()` of a whole pass of the model, and notices of adapters that no pass reaches.

    Raises PeftkitError for those whose weight the model reads past the module, and for those of which no layer calls
    its like.
    """
    with _listening() as called:
        made = logits()
    silent = _silent(model, called)
    if not silent:
        return made, []
    kinds = {_kind(path) for path, module in model.named_modules() if module in called}
    read = _read(silent, logits)
    unlike = [path for path in silent if _kind(path) not in kinds]
    if read or unlike:
        how = "reads their weights without calling them" if read else "does not call them on texts"
        raise PeftkitError(
            f"adapters sit on {_shown(read or unlike)}, and this model {how}: they would change nothing. Leave "
            f"them out, by exclude: [{', '.join(sorted({path.split('.')[-1] for path in read or unlike}))}]."
        )
    return made, [f"the model never calls {_shown(list(silent))}: adapters there stay as they start."]


@contextmanager
def _listening() -> Iterator[set[nn.Module]]:
    """Yield the modules that are called inside."""
    called: set[nn.Module] = set()
    hook = register_module_forward_pre_hook(lambda module, args: called.add(module))
    try:
        yield called
    finally:
        hook.remove()


def _silent(model: nn.Module, called: set[nn.Module]) -> dict[str, Seat]:
    """Return the seats that were not called, by path, but for those inside what a model chooses from a list."""
    modules = dict(model.named_modules())
    silent = {path: m for path, m in modules.items() if isinstance(m, Seat) and m not in called}
    return {path: seat for path, seat in silent.items() if not _chosen(path, modules, called)}


def _chosen(path: str, modules: dict[str, nn.Module], called: set[nn.Module]) -> bool:
    """Say whether the outermost module around `path` that was not called stands in a list of which others were."""
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        module, home = (modules[".".join(parts[:end])] for end in (count, count - 1))
        if module not in called and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return isinstance(home, nn.ModuleList | nn.ModuleDict) and any(m in called for m in home.children())
    return False


def _read(silent: dict[str, Seat], logits: Callable[[], Tensor]) -> list[str]:
    """Return the paths of those of which some weight has a part in the logits; of packed ones nobody can tell."""
    own = {path: [p for p in seat._parameters.values() if p is not None] for path, seat in silent.items()}
    before = [(p, p.requires_grad) for parameters in own.values() for p in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            found = {id(leaf) for leaf in leaves(logits())}
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
    return [path for path, parameters in own.items() if not parameters or any(id(p) in found for p in parameters)]


def _kind(path: str) -> str:
    """Return the path without the places in lists: the same for modules that layers have in common."""
    return re.sub(r"\.\d+(?=\.|$)", "", path)


def _shown(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more
