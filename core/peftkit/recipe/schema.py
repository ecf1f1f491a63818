"""The JSON schema of recipes, short forms and every method's options included: editors complete and check with it."""

from __future__ import annotations

from typing import Any

from peftkit.options import schema as options_schema
from peftkit.recipe.choices import (
    dataset_names,
    loggers,
    methods,
    optimizer_names,
    quantization_formats,
    quantizers,
)
from peftkit.recipe.compose import SECTIONS, part_names
from peftkit.recipe.sections import Recipe


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe as a person writes it."""
    built = Recipe.model_json_schema()
    definitions, keys = built["$defs"], built["properties"]
    definitions.pop("MethodChoice")
    for name, section in SECTIONS.items():
        definitions[section.__name__].pop("required", None)
        long = {"$ref": f"#/$defs/{section.__name__}"}
        forms = [{"type": "string"}, long] if section.short else [long]
        keys[name] = {"anyOf": [*forms, {"type": "null"}], "description": Recipe.model_fields[name].description}
    _define_methods(definitions)
    one_method = {"$ref": "#/$defs/method"}
    keys["method"] |= {"anyOf": [one_method, {"type": "array", "minItems": 1, "items": one_method}]}
    keys["include"] |= {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string", "examples": part_names()}}]
    }
    forms = {"type": "array", "items": {"anyOf": [{"type": "string"}, *keys["method"]["anyOf"]]}}
    compared = definitions["CompareSection"]["properties"]["methods"]
    compared.update({"anyOf": [{"const": "all"}, forms]})
    for word in ("type", "items", "default"):
        compared.pop(word, None)
    for name in ("method", "include"):
        for word in ("type", "items", "minItems", "default"):
            keys[name].pop(word, None)
    _offer(definitions, "DatasetSection", "name", dataset_names())
    _offer(definitions, "TrainSection", "optimizer", optimizer_names())
    _define_loggers(definitions)
    _define_formats(definitions)
    # A part may leave any key to the recipe that includes it, and a recipe to its parts.
    built.pop("required")
    title = {"title": "peftkit recipe", "description": built["description"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **built, **title}


def _define_methods(definitions: dict[str, Any]) -> None:
    """Define each method's options, and the forms of one method: its name, or {name: options}."""
    forms: dict[str, Any] = {}
    for name, method in methods().items():
        options = options_schema(method)
        definitions.update(options.pop("$defs", {}))
        definitions[f"method-{name}"] = {**options, "additionalProperties": False}
        forms[name] = {"anyOf": [{"$ref": f"#/$defs/method-{name}"}, {"type": "null"}], "description": method.summary}
    mapping = {
        "type": "object",
        "properties": forms,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    definitions["method"] = {"anyOf": [{"type": "string", "enum": list(forms)}, mapping]}


def _define_loggers(definitions: dict[str, Any]) -> None:
    """Let a logger be its name, or {name: options}."""
    forms: dict[str, Any] = {}
    for name, logger in loggers().items():
        options = {**options_schema(logger), "additionalProperties": False}
        forms[name] = {"anyOf": [options, {"type": "null"}], "description": logger.summary}
    mapping = {"type": "object", "properties": forms, "additionalProperties": False, "minProperties": 1}
    one = {"anyOf": [{"type": "string", "enum": list(forms)}, {**mapping, "maxProperties": 1}]}
    definitions["TrainSection"]["properties"]["log"]["items"] = one


def _define_formats(definitions: dict[str, Any]) -> None:
    """Let formats' options, and names of modules with a format of their own, stand beside the format."""
    kinds = {bool: "boolean", int: "integer", float: "number"}
    names = {"type": "string", "enum": quantization_formats()}
    section, options = definitions["QuantizationSection"], {}
    for _, cls in quantizers().items():
        options |= {key: {"type": kinds[type(value)]} for key, value in cls().options().items()}
    choice = {"type": "object", "properties": {"format": names, "options": {"type": "object"}, **options}}
    one = {"anyOf": [names, {**choice, "required": ["format"], "additionalProperties": False}]}
    section["properties"] |= {"default": {**names, "description": "Another word for `format`."}, **options}
    section["properties"]["format"] |= names
    section["properties"]["modules"] |= {"additionalProperties": one}
    section["additionalProperties"] = one
    definitions.pop("FormatChoice", None)


def _offer(definitions: dict[str, Any], section: str, key: str, names: list[str]) -> None:
    definitions[section]["properties"][key]["enum"] = names
