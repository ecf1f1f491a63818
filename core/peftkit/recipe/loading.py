"""Load a recipe: read it, bring its parts together, check every key, and tell all mistakes at once."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftkit import files, plugins
from peftkit.errors import PeftkitError
from peftkit.recipe import compose
from peftkit.recipe.catalogue import find
from peftkit.recipe.choices import check_adapter, dataset_names, optimizer_names
from peftkit.recipe.chosen import complete_compared, complete_methods
from peftkit.recipe.entries import complete_entries
from peftkit.recipe.first_look import first_look
from peftkit.recipe.mistakes import Mistakes, Place, suggest
from peftkit.recipe.opened import open_folders
from peftkit.recipe.quantized import BASE, check_calibration, complete_quantization
from peftkit.recipe.sections import NAME, Recipe
from peftkit.recipe.start import complete_start
from peftkit.recipe.translate import translate
from peftkit.recipe.tree import Node, from_python, read_file
from peftkit.registry import installed


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, agreed: bool = True) -> Recipe:
    """Load a recipe from a YAML file, the name of a shipped recipe (`e2e/lora`) or a mapping.

    `overrides` are `key=value` texts, each the same as that edit in the file. Parts named in `include` are laid under
    the recipe's own keys. Its plugins run; of a recipe that someone else may have written (not `agreed`) only those
    that someone on this machine has agreed to. Raises PeftkitError that tells every mistake with its file and line, and
    for a recipe with a sweep, which is several (`load_sweep`).
    """
    recipe = load_whole(source, overrides, agreed=agreed)
    if recipe.sweep:
        raise PeftkitError(
            f"the recipe has a sweep over {', '.join(recipe.sweep)}, and one recipe is wanted here: add 'sweep={{}}' "
            "to leave it out, or name a run of it by its own recipe.yaml. `peft train` and `peft validate` take sweeps."
        )
    return recipe


def load_run(run: Path, overrides: Sequence[str] = (), *, agreed: bool = False) -> Recipe:
    """Load the recipe of a run for what it has trained, which needs the adapter that it went on from no more.

    A base that the run has calibrated is taken from its folder. Its plugins run if someone on this machine has agreed
    to them, or with `agreed`.
    """
    own = ["calibration.weights=null"] if (run / BASE).is_dir() else []
    return on_own_base(load(run / "recipe.yaml", ["adapter=null", *own, *overrides], agreed=agreed), run)


def on_own_base(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with the base that a run of it has calibrated, where there is one in the run's folder."""
    if not (run / BASE).is_dir():
        return recipe
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"weights": str(run)})})


def load_whole(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, agreed: bool = True) -> Recipe:
    """Load a recipe as `load` does, its sweep included."""
    mistakes = Mistakes()
    if isinstance(source, Mapping):
        tree, folder = from_python(source, Place("recipe"), mistakes), Path.cwd()
    else:
        path = find(source)
        tree, folder = read_file(path, mistakes), path.parent
    parts = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] == "include"]
    tree = compose.override(compose.expand(tree, mistakes), parts, mistakes)
    tree = compose.include(tree, folder, mistakes)
    tree = compose.override(tree, [text for text in overrides if text not in parts], mistakes)
    if mistakes.final:
        mistakes.check()
    own = _run_plugins(tree, mistakes, agreed=agreed)
    # The shipped schema knows the names of the package alone.
    if "torch" not in sys.modules and not own and not installed():
        first_look(tree, mistakes)
        mistakes.check()
    return _validate(tree, mistakes)


def _run_plugins(tree: Node, mistakes: Mistakes, *, agreed: bool) -> bool:
    """Run the files that `plugins` lists, and say whether there are any; raises PeftkitError for what fails."""
    node = tree.value.get("plugins")
    listed = node.value if node is not None and isinstance(node.value, list) else []
    named = [(number, item) for number, item in enumerate(listed) if isinstance(item.value, str) and item.value]
    for number, item in named:
        try:
            plugins.run(files.expanded(item.value), agreed=agreed)
        except PeftkitError as error:
            mistakes.add(item.place, f"plugins.{number}", str(error), final=True)
    if mistakes.final:
        mistakes.check()
    return bool(named)


def _validate(tree: Node, mistakes: Mistakes) -> Recipe:
    """Check every key of the expanded `tree`; names and options of methods are checked in their registry."""
    tree = open_folders(tree, mistakes)
    if mistakes.final:
        mistakes.check()
    tree = complete_start(tree, mistakes)
    if mistakes.final:
        mistakes.check()
    keys = tree.plain()
    homes = dict(compose.KEYS)
    if "method" in tree.value:
        keys["method"] = complete_methods(tree, keys, homes, mistakes)
    compared = tree.find(("compare", "methods"))
    if isinstance(keys.get("compare"), dict) and "methods" in keys["compare"]:
        keys["compare"]["methods"] = complete_compared(compared, keys.get("method") or [], mistakes)
    if "quantization" in tree.value:
        keys["quantization"] = complete_quantization(tree.value["quantization"], mistakes) or keys["quantization"]
    complete_entries(tree, keys, mistakes)
    check_calibration(tree, keys, mistakes)
    _check_names(tree, mistakes)
    _check_adapters(tree, mistakes)
    recipe = None
    try:
        recipe = Recipe.model_validate(keys)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            translate(fault, tree, homes, mistakes)
    mistakes.check()
    if recipe is None:
        raise PeftkitError("the recipe is not valid")
    return recipe


def _check_names(tree: Node, mistakes: Mistakes) -> None:
    """Check the names that other parts of the package register."""
    for path, choices in ((("dataset", "name"), dataset_names()), (("train", "optimizer"), optimizer_names())):
        node = tree.find(path)
        if isinstance(node.value, str) and node.value not in choices:
            mistakes.add(node.place, ".".join(path), f"found '{node.value}'; {suggest(node.value, choices)}")


def _check_adapters(tree: Node, mistakes: Mistakes) -> None:
    """Check that the trained adapters are there."""
    node = tree.find(("adapters",))
    for name, item in node.value.items() if "adapters" in tree.value and isinstance(node.value, dict) else ():
        if not re.match(NAME, name):
            allowed = "letters, digits, '_' and '-', a letter or digit first, 64 at most"
            mistakes.add(item.place, f"adapters.{name}", f"found the name {name[:80]!r}; allowed: {allowed}")
        if isinstance(item.value, str) and item.value:
            try:
                check_adapter(files.expanded(item.value))
            except PeftkitError as error:
                mistakes.add(item.place, f"adapters.{name}", str(error))
