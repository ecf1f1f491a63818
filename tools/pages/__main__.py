"""`PYTHONPATH=tools python -m pages` writes `configs/recipe.schema.json` and the pages of recipes, methods, models."""

from __future__ import annotations

from pages.methods import methods_page
from pages.models import models_page
from pages.recipes import recipes_page
from peftkit import files, resources
from peftkit.recipe.schema import schema


def main() -> None:
    """Write the files into the checkout."""
    configs = resources.folder("configs")
    files.write_json(configs / "recipe.schema.json", schema())
    files.write_text(configs.parent / "docs" / "recipes.md", recipes_page())
    files.write_text(configs.parent / "docs" / "methods.md", methods_page())
    files.write_text(configs.parent / "docs" / "models.md", models_page())


if __name__ == "__main__":
    main()
