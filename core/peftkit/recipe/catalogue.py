"""The recipes that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from peftkit import files, resources
from peftkit.errors import PeftkitError, hint


def shipped() -> list[tuple[str, Path, str]]:
    """List the shipped recipes: name (`e2e/lora`), file, and the first line of its comment."""
    folder = resources.folder("recipes")
    return [
        (path.relative_to(folder).with_suffix("").as_posix(), path, headline(path))
        for path in sorted(folder.rglob("*.yaml"))
    ]


def find(source: str | Path) -> Path:
    """Return the file of a recipe: a path, or the name of a shipped one, with or without `recipes/` and `.yaml`."""
    path = files.expanded(source)
    try:
        if path.is_file():
            return path
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise PeftkitError(f"{str(source)[:80]!r} cannot be a recipe: {error}. Name a YAML file.") from None
    if folder:
        raise PeftkitError(
            f"{path} is a folder, and a recipe is wanted: name a YAML file, such as {path / 'recipe.yaml'}."
        )
    recipes = {name: file for name, file, _ in shipped()}
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if name in recipes:
        return recipes[name]
    guess = hint(name, recipes)
    raise PeftkitError(f"there is no recipe {str(path)!r}.{guess} Name a YAML file, or one of: {', '.join(recipes)}.")


def headline(path: Path) -> str:
    """Return the first comment line that says what the recipe is; lines for editors are passed over."""
    for line in files.read_lines(path):
        if line.startswith("#") and "yaml-language-server" not in line:
            return line.lstrip("# ").strip()
    return ""
