"""The generated files: the JSON schema and the reference page are those of the models."""

from __future__ import annotations

import json
import re

from pages.methods import methods_page
from pages.recipes import recipes_page
from peftkit import resources
from peftkit.method import METHODS
from peftkit.options import schema as method_schema
from peftkit.recipe import Recipe, schema
from peftkit.recipe.compose import SECTIONS

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
