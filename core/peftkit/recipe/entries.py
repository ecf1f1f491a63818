"""The objective, strategy and loggers that a recipe chooses: names or {name: options}; faults are told in place."""

from __future__ import annotations

import dataclasses
from typing import Any

from peftkit.options import Options
from peftkit.recipe.choices import loggers, objectives, pruners, strategies
from peftkit.recipe.chosen import complete_options
from peftkit.recipe.mistakes import Mistakes, suggest
from peftkit.recipe.sections import Recipe, TrainSection
from peftkit.recipe.tree import Node
from peftkit.registry import Registry
from peftkit.schemas import show

FORMS = "a name, or {name: {option: value}}"
Entry = tuple[str, dict[str, Any]]


def complete_entries(tree: Node, keys: dict[str, Any], mistakes: Mistakes) -> None:
    """Write the chosen entries into `keys` with every option.

    An option of the objective that the section `train` has too moves there; given in both, and otherwise, it is a
    mistake.
    """
    train = keys.setdefault("train", {})
    if not isinstance(train, dict):
        return
    if "strategy" in train:
        train["strategy"] = _complete(tree.find(("train", "strategy")), "train.strategy", strategies(), mistakes)
        _refuse_ignored(tree, train, mistakes)
    if isinstance(train.get("log"), list):
        train["log"] = _complete_loggers(tree.find(("train", "log")), mistakes)
    if keys.get("pruning") is not None:
        keys["pruning"] = _complete(tree.find(("pruning",)), "pruning", pruners(), mistakes)
    registered = objectives()
    chosen = Recipe.model_fields["objective"].default
    if "objective" in keys:
        chosen = keys["objective"] = _complete(tree.find(("objective",)), "objective", registered, mistakes)
    if not isinstance(chosen, str | dict):
        return
    name, options = entry(chosen)
    own = _fields(registered[name])
    for key in sorted({key for _, cls in registered.items() for key in _fields(cls)} & set(TrainSection.model_fields)):
        default = TrainSection.model_fields[key].default
        if key not in own and train.get(key, default) != default:
            place = tree.find(("train", key)).place
            mistakes.add(place, f"train.{key}", f"found {show(train[key])}, and the objective '{name}' has none")
        if key in own and key in options and key in _given(tree, name):
            if train.get(key, options[key]) != options[key]:
                place = tree.find(("objective", name, key)).place
                fault = f"found {show(options[key])}, and train.{key} is {show(train[key])}; allowed: one of them"
                mistakes.add(place, f"objective.{name}.{key}", fault)
            train[key] = options[key]
        options.pop(key, None)
    keys["objective"] = {name: options} if options else name


def _complete_loggers(node: Node, mistakes: Mistakes) -> list[Any]:
    """Return each logger with its options; one that is named twice is a mistake."""
    items = node.value
    complete = [_complete(item, "train.log", loggers(), mistakes) for item in items]
    names = [entry(choice)[0] if choice is not None else None for choice in complete]
    for position, name in enumerate(names):
        if name is not None and name in names[:position]:
            mistakes.add(items[position].place, "train.log", f"found '{name}' twice; allowed: each logger once")
    return [choice for choice in complete if choice is not None]


def _refuse_ignored(tree: Node, train: dict[str, Any], mistakes: Mistakes) -> None:
    """Note the keys of `train` that say nothing to its strategy and are not at their default."""
    if not isinstance(train["strategy"], str | dict):
        return
    name, options = entry(train["strategy"])
    for key in strategies()[name].from_options(options).needs().ignores:
        given, default = train.get(key), TrainSection.model_fields[key].default
        if key in train and given not in (default, list(default) if isinstance(default, tuple) else default):
            fault = f"found {show(given)}, and the strategy '{name}' has no use for it; leave it out"
            mistakes.add(tree.find(("train", key)).place, f"train.{key}", fault)


def entry(choice: str | dict[str, Any]) -> Entry:
    """Return the name and the options of a choice."""
    if isinstance(choice, str):
        return choice, {}
    ((name, options),) = choice.items()
    return name, dict(options or {})


def _given(tree: Node, name: str) -> dict[str, Node]:
    """Return the options of the objective that are written in the recipe."""
    node = tree.value.get("objective")
    options = node.value.get(name) if node is not None and isinstance(node.value, dict) else None
    return options.value if options is not None and isinstance(options.value, dict) else {}


def _complete(node: Node, home: str, registry: Registry[Any], mistakes: Mistakes) -> Any:
    """Return {name: options} with every option, or the name of an entry without options; a wrong one as it stands."""
    given = {node.value: None} if isinstance(node.value, str) else node.plain()
    if not isinstance(given, dict) or len(given) != 1:
        mistakes.add(node.place, home, f"found {show(node.value)}; allowed: {FORMS}")
        return None
    ((name, options),) = given.items()
    if name not in registry:
        fault = f"found '{name}', which is no {registry.kind}; {suggest(name, registry.names())}"
        mistakes.add(node.place, home, fault)
        return None
    if options is not None and not isinstance(options, dict):
        mistakes.add(node.place, f"{home}.{name}", f"found {show(options)}; allowed: {FORMS}")
        return None
    complete = complete_options(registry[name], options or {}, node.find((name,)), f"{home}.{name}", mistakes)
    return {name: complete} if complete else name


def _fields(cls: type[Options]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]
