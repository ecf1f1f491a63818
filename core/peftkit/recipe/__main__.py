"""`python -m peftkit.recipe` writes `configs/recipe.schema.json`, `docs/recipes.md` and `docs/methods.md` anew."""

from __future__ import annotations

from peftkit import files, resources
from peftkit.recipe.methods_page import methods_page
from peftkit.recipe.reference import reference
from peftkit.recipe.schema import schema


def main() -> None:
    """Write the files into the checkout."""
    configs = resources.folder("configs")
    files.write_json(configs / "recipe.schema.json", schema())
    files.write_text(configs.parent / "docs" / "recipes.md", reference())
    files.write_text(configs.parent / "docs" / "methods.md", methods_page())


if __name__ == "__main__":
    main()
