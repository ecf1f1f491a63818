"""Make a run of an adapter that another library trained: its recipe, and the adapter in this project's form."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import IMPORTED, attach, check_finite, describe_adapter, find_adapter, save_adapter
from peftkit.assembly import Assembled, assemble
from peftkit.data.encode import opening
from peftkit.errors import PeftkitError
from peftkit.interchange.published import published
from peftkit.interchange.reader import READERS, FolderReader, is_foreign, reader_of
from peftkit.tasks.jsonl import JSONLines

CPU = torch.device("cpu")
GIVEN = ("model", "quantization", "dataset", "eval", "generation")
"""The sections of a recipe that a folder of another library says nothing or little of."""
BASES = ("model", "quantization")
"""Those of them that decide what the adapter stands on."""
INSIDE = "peftkit"
"""The run that commands make in a folder which they are given directly."""
NO_DATA = JSONLines.name
"""The data set of a recipe that names none: rows of one's own, for which no path is given."""
ANY_METHOD = "full"
"""Stands in a recipe until the model's modules tell the methods."""


def import_folder(
    folder: Path,
    output: Path,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Write the run folder `output` of another library's adapter folder; returns a report.

    `overrides` are `key=value` texts of the sections `model`, `quantization`, `dataset`, `eval` and `generation`;
    `base` has the first two of them as a recipe has them. The base is the one that the folder names where `model` is
    not given. Raises PeftkitError for a folder of no known library, tensors that do not fit the base, and whatever
    would compute something else here. Nothing is left at `output` on an error; one that is there already is refused, or
    taken away with `replace`.
    """
    folder, output = _located(Path(folder))[0], Path(output)
    reader = _reader(folder)
    recipe = _recipe(folder, reader, overrides, base)
    with files.new_folder(output, replace=replace) as place:
        model = assemble(recipe, bare=True, device=CPU)
        adaptation = _attached(folder, reader, model)
        marks = {"library": reader.library, "folder": str(folder), "files": reader.digests(folder)}
        save_adapter(adaptation, place / "adapter", model.description, imported=marks)
        files.write_text(place / "recipe.yaml", _with_methods(recipe, adaptation.described).to_yaml())
    return {
        "library": reader.library,
        "output": str(output),
        "base": model.name,
        "methods": [method.name for method in adaptation.described],
        "trainable_parameters": adaptation.trainable,
    }


def as_run(
    folder: Path, overrides: Sequence[str] = (), *, base: Mapping[str, Any] | None = None
) -> tuple[Path, list[str]]:
    """Return the run that a folder stands for, and the overrides that are left to ask of it.

    A run stands for itself. For another library's adapter folder it is the folder `peftkit` inside, and for an id of
    the hub, `OWNER/NAME[/SUBFOLDER][@REVISION]`, one in this project's cache. It is made by `import_folder`, and again
    where the files or the base that is asked for changed. `base` has the sections `model` and `quantization` of a
    recipe that names the folder.
    """
    folder, run = _located(Path(folder))
    if not is_foreign(folder):
        return folder, list(overrides)
    made = _made(run, _reader(folder).digests(folder))
    asked = [text for text in overrides if _section(text) in BASES]
    wanted = _recipe(folder, _reader(folder), overrides, base) if asked or base else made
    if made is None or wanted is None or not _alike(made, wanted):
        import_folder(folder, run, overrides, base=base, replace=True)
    return run, [text for text in overrides if text not in asked]


def _located(place: Path) -> tuple[Path, Path]:
    """Return the folder of what is named, fetched where it is an id of the hub, and where its run is kept."""
    found = published(place)
    if found is None:
        return place, place / INSIDE
    folder = found.fetched()
    return folder, found.run(folder)


def _made(run: Path, marks: Mapping[str, str]) -> recipes.Recipe | None:
    """Return the recipe of a run that was made of the files with these `marks`; None where there is none."""
    if not (run / "recipe.yaml").is_file() or not (run / "adapter").is_dir():
        return None
    imported = describe_adapter(find_adapter(run)).get(IMPORTED)
    return recipes.load_run(run) if imported is not None and imported["files"] == marks else None


def _alike(one: recipes.Recipe, other: recipes.Recipe) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in BASES)


def _section(text: str) -> str:
    return re.split(r"[.=]", text.strip(), maxsplit=1)[0]


def _reader(folder: Path) -> FolderReader:
    """Return the reader of a folder; PeftkitError where none is known."""
    reader = reader_of(folder) if folder.is_dir() else None
    if reader is None:
        state = "is no folder" if folder.exists() and not folder.is_dir() else "does not exist"
        state = "holds no adapter of a library that is known" if folder.is_dir() else state
        known = ", ".join(f"{each.library} ({each.configuration})" for _, each in READERS.items())
        raise PeftkitError(f"{folder} {state}; read are folders of {known}.")
    return reader


def _recipe(
    folder: Path, reader: FolderReader, overrides: Sequence[str], base: Mapping[str, Any] | None = None
) -> recipes.Recipe:
    """Return the recipe without the methods, which the model's modules tell."""
    for text in overrides:
        if _section(text) not in GIVEN:
            raise PeftkitError(
                f"override '{text[:80]}': the adapter is there already; allowed are keys of {', '.join(GIVEN)}."
            )
    keys: dict[str, Any] = {"method": ANY_METHOD, "dataset": NO_DATA, **(base or {})}
    if "model" not in keys and not any(text.strip().startswith(("model=", "model.name=")) for text in overrides):
        name, revision = reader.base(folder)
        if name is None:
            raise PeftkitError(
                f"{folder / reader.configuration} does not tell the model that the adapter was trained on: name it "
                "with model=NAME."
            )
        keys["model"] = {"name": name, "revision": revision}
    return recipes.load(keys, list(overrides))


def _attached(folder: Path, reader: FolderReader, base: Assembled) -> Any:
    """Attach what a folder holds to its base; PeftkitError where that does not fit."""
    found = reader.read(folder, base.layout)
    try:
        adaptation = attach(base.module, found.methods, keep_base=False, loading=True)
        adaptation.load_state(found.tensors)
        check_finite(folder / reader.tensors, adaptation.state())
    except PeftkitError as error:
        raise PeftkitError(f"{folder} does not fit the model {base.name}: {error}") from None
    first = opening(base.tokenizer) if found.in_front and adaptation.soft_ids else []
    if first:
        raise PeftkitError(
            f"{folder}: this model's tokenizer begins texts with '{base.tokenizer.decode(first)}', which stands behind "
            f"a soft prompt in {reader.library} and in front of it here: the same rows would give other answers."
        )
    return adaptation


def _with_methods(recipe: recipes.Recipe, methods: Sequence[Any]) -> recipes.Recipe:
    chosen = tuple(recipes.MethodChoice(name=method.name, options=method.options()) for method in methods)
    return recipe.model_copy(update={"method": chosen})
