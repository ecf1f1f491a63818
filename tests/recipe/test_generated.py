"""The generated files: the JSON schema and the reference page are those of the models."""

from __future__ import annotations

import json
import re

import pytest
import transformers
from draw import some

from pages.methods import methods_page
from pages.models import models_page, taken
from pages.recipes import recipes_page
from peftkit import resources
from peftkit.method import METHODS
from peftkit.options import schema as method_schema
from peftkit.recipe import Recipe, schema
from peftkit.recipe.compose import SECTIONS
from zoo import made

CONFIGS = resources.folder("configs")


def test_shipped_schema_is_current():
    shipped = json.loads((CONFIGS / "recipe.schema.json").read_text())
    assert shipped == schema(), "run: make pages"


def test_page_is_current():
    page = (CONFIGS.parent / "docs" / "recipes.md").read_text()
    assert page == recipes_page(), "run: make pages"


def test_methods_page_is_current():
    page = (CONFIGS.parent / "docs" / "methods.md").read_text()
    assert page == methods_page(), "run: make pages"


def models_of_page() -> tuple[str, dict[str, dict[str, str]]]:
    """Read the page of models: the version of transformers, and by family what it says of each method."""
    page = (CONFIGS.parent / "docs" / "models.md").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.M)
    legend, rows = ([line.strip("| ").split(" | ") for line in table.splitlines()] for table in tables)
    methods = {label: re.findall(r"`([^`]+)`", names) for label, names in legend[2:]}
    found = {
        family.rstrip("*"): {
            name: word for label, word in zip(rows[0][1:], words, strict=True) for name in methods[label]
        }
        for family, *words in rows[2:]
    }
    version = re.search(r"transformers (\S+) knows", page)
    assert version, "the page does not tell the version of transformers"
    return version[1], found


def test_models_page_is_current_on_some_families():
    version, found = models_of_page()
    if version != transformers.__version__:
        pytest.skip(f"the page is of transformers {version}")
    assert list(found) == made(), "run: make pages"
    for family in some("models page", made(), 6):
        assert found[family] == taken(family), f"{family}; run: make pages"


@pytest.mark.thorough
def test_models_page_is_current():
    if models_of_page()[0] != transformers.__version__:
        pytest.skip("the page is of another transformers")
    assert (CONFIGS.parent / "docs" / "models.md").read_text() == models_page(), "run: make pages"


def test_every_method_says_what_it_is():
    for name, cls in METHODS.items():
        assert len(re.findall(r"[.](?: |$)", cls.summary)) == 2, f"{name}: two sentences say what it does"
        assert cls.paper, name
        assert cls.family, name
        for option, facts in method_schema(cls)["properties"].items():
            assert facts.get("description"), f"{name}.{option} has no docstring"


def test_every_key_has_a_meaning():
    for section in (Recipe, *SECTIONS.values()):
        for key, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{key} has no docstring"


def test_schema_takes_short_forms_and_knows_every_method():
    built = schema()
    keys = built["properties"]
    assert list(keys) == list(Recipe.model_fields)
    for name in ("model", "dataset", "quantization"):
        assert {"type": "string"} in keys[name]["anyOf"]
    names, mapping = built["$defs"]["method"]["anyOf"]
    assert names["enum"] == METHODS.names()
    assert sorted(mapping["properties"]) == METHODS.names()
    assert built["$defs"]["method-lora"]["properties"]["alpha"]["type"] == "number"
    assert "additionalProperties" in built["$defs"]["method-lora"]


def test_every_reference_in_the_schema_resolves():
    built = schema()
    found = []

    def walk(value):
        if isinstance(value, dict):
            found.extend([value["$ref"]] if "$ref" in value else [])
            for below in value.values():
                walk(below)
        elif isinstance(value, list):
            for below in value:
                walk(below)

    walk(built)
    assert found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(built["$defs"])
