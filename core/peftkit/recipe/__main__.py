"""`python -m peftkit.recipe` writes what comes from the models: `configs/recipe.schema.json` and `docs/recipes.md`."""

from __future__ import annotations

from peftkit import files, resources
from peftkit.recipe.reference import reference
from peftkit.recipe.schema import schema


def main() -> None:
    """Write both files into the checkout."""
    configs = resources.folder("configs")
    files.write_json(configs / "recipe.schema.json", schema())
    files.write_text(configs.parent / "docs" / "recipes.md", reference())


if __name__ == "__main__":
    main()
