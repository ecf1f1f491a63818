"""The storage formats that a recipe chooses, with every option written out; a wrong one is told where it stands."""

from __future__ import annotations

import dataclasses
from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.recipe.base_sections import CalibrationSection
from peftkit.recipe.choices import NO_FORMAT, quantization_formats, quantizers
from peftkit.recipe.mistakes import Mistakes, suggest
from peftkit.recipe.tree import Node
from peftkit.schemas import show

HOME = "quantization"
KEYS = ("format", "default", "options", "modules", "init", "budget")
"""Keys of the section beside the options of its format and the names of modules; `default` is another word."""
BASE = "base"
"""In a run's folder: the weights of its base that examples have decided."""


def complete_quantization(node: Node, mistakes: Mistakes) -> dict[str, Any] | None:
    """Return the section as `format`, `options` and `modules`, whatever form it was written in.

    Beside `format` may stand its options, and names of modules with a format of their own: {default: nf4, head: none}.
    `init` has moved into the methods. None where the section is no mapping, which the schema tells.
    """
    if not isinstance(node.value, dict):
        return None
    given = dict(node.value)
    if "default" in given and "format" in given:
        mistakes.add(given["default"].place, f"{HOME}.default", "found beside 'format', which means the same: keep one")
    name = given.pop("format", None) or given.pop("default", None) or Node(NO_FORMAT, node.place)
    given.pop("default", None)
    init = given.pop("init", None)
    if init is not None and not isinstance(init.value, (str, type(None))):
        mistakes.add(init.place, f"{HOME}.init", f"found {show(init.plain())}; allowed: the name of an init")
    budget = given.pop("budget", None)
    if budget is not None and name.value != NO_FORMAT and budget.value is not None:
        mistakes.add(name.place, f"{HOME}.format", f"found {show(name.value)} beside a budget, which chooses formats")
    nested = [given.pop(key) for key in ("options", "modules") if key in given and isinstance(given[key].value, dict)]
    if any(key in given for key in ("options", "modules")):
        return None
    for inner in nested:
        given |= inner.value
    options = {key: given.pop(key) for key in list(given) if key in _options(name.value)}
    choice = _choice(name, options, HOME, mistakes)
    modules = {}
    for pattern, item in given.items():
        form = item if isinstance(item.value, dict) else Node({"format": item}, item.place)
        named = form.value.get("format")
        if named is None or not isinstance(named.value, str):
            allowed = [*KEYS, *_options(name.value)]
            fault = f"unknown key; {suggest(pattern, allowed)}; a module's name takes a format"
            mistakes.add(item.place, f"{HOME}.{pattern}", fault)
            continue
        inner = dict(form.value)
        inner.pop("format")
        if isinstance(inner.get("options", form).value, dict) and "options" in inner:
            inner |= inner.pop("options").value
        modules[pattern] = _choice(named, inner, f"{HOME}.{pattern}", mistakes)
    return {**choice, "modules": modules, "budget": None if budget is None else budget.plain()}


def check_calibration(tree: Node, keys: dict[str, Any], mistakes: Mistakes) -> None:
    """Note a section `calibration` that nothing looks at, weights that no run has left, and a pruned budget."""
    pruning, storage = tree.value.get("pruning"), keys.get("quantization")
    if pruning is not None and pruning.value is not None and isinstance(storage, dict) and storage.get("budget"):
        fault = "found beside quantization.budget, whose formats suit weights that are all there; allowed: one of them"
        mistakes.add(pruning.place, "pruning", fault)
    if "calibration" not in tree.value:
        return
    section, formats = tree.value["calibration"], [name for name, cls in quantizers().items() if cls.calibrated]
    looking = isinstance(storage, dict) and any(one.get("format") in formats for one in _choices(storage))
    # A recipe with every key written out has the section as it comes.
    as_it_comes = section.plain() == CalibrationSection().model_dump()
    if not looking and keys.get("pruning") is None and not as_it_comes:
        allowed = f"{', '.join(formats)} and pruning"
        fault = f"found, and nothing chosen looks at examples; allowed with {allowed}: leave it out"
        mistakes.add(section.place, "calibration", fault)
    weights = tree.find(("calibration", "weights"))
    run = weights.value if isinstance(section.value, dict) and "weights" in section.value else None
    if isinstance(run, str) and run and not (files.expanded(run) / BASE).is_dir():
        allowed = f"a run in one of {', '.join(formats)}, or a pruned one"
        fault = f"found '{run}', where no calibrated base is; allowed: {allowed}"
        mistakes.add(weights.place, "calibration.weights", fault)


def _choices(section: dict[str, Any]) -> list[dict[str, Any]]:
    return [section, *(one for one in (section.get("modules") or {}).values() if isinstance(one, dict))]


def _choice(name: Node, options: dict[str, Node], home: str, mistakes: Mistakes) -> dict[str, Any]:
    """Return a format's name and every option of it."""
    formats = quantization_formats()
    if not isinstance(name.value, str) or name.value not in formats:
        mistakes.add(name.place, f"{home}.format", f"found {show(name.value)}; {suggest(str(name.value), formats)}")
        return {"format": NO_FORMAT, "options": {}}
    if name.value == NO_FORMAT:
        for key, node in options.items():
            mistakes.add(node.place, f"{home}.{key}", f"found, and the format is {NO_FORMAT}, which has no options")
        return {"format": NO_FORMAT, "options": {}}
    cls, complete = quantizers()[name.value], {}
    for key, node in options.items():
        try:
            cls.from_options({key: node.plain()})
            complete[key] = node.plain()
        except PeftkitError as error:
            mistakes.add(node.place, f"{home}.{key}", str(error).removeprefix(f"{cls.name}: ").removeprefix(f"{key}: "))
    return {"format": name.value, "options": cls.from_options(complete).options()}


def _options(name: Any) -> list[str]:
    """List the options of a format; none of what is no format."""
    known = isinstance(name, str) and name in quantizers()
    return [field.name for field in dataclasses.fields(quantizers()[name])] if known else []
