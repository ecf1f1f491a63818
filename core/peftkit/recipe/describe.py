"""Say in words what a key allows, from the JSON schema of its model: for errors and for the reference page."""

from __future__ import annotations

from functools import cache
from math import inf
from typing import Any

from pydantic import BaseModel


@cache
def properties(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each key of a section."""
    return model.model_json_schema()["properties"]


def allowed(model: type[BaseModel], key: str) -> str:
    """Say what `key` of `model` allows: `a whole number from 1, or null`."""
    return words(properties(model)[key])


def words(schema: dict[str, Any]) -> str:
    """Say what a JSON schema allows."""
    if "anyOf" in schema:
        return ", or ".join(words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in schema["enum"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _bounds(schema)
        case "number":
            return "a number" + _bounds(schema)
        case "string":
            return "text"
        case "boolean":
            return "true, false"
        case "null":
            return "null"
        case "array" if "prefixItems" in schema:
            return f"a list of {len(schema['prefixItems'])}, each {words(schema['prefixItems'][0])}"
        case "array" if "$ref" not in schema.get("items", {}):
            return f"a list, each {words(schema['items'])}"
        case "object" if schema.get("additionalProperties", {}) != {}:
            lists = isinstance(schema["additionalProperties"], dict) and "items" in schema["additionalProperties"]
            return "a mapping of keys, each with a list" if lists else "a mapping of keys"
    return "a mapping of keys"


KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list,),
    "object": (dict,),
}
"""The values that the types of JSON schemas allow."""


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Say whether a JSON schema allows a value: its type, bounds and choices, and nothing beside."""
    if "anyOf" in schema:
        return any(fits(choice, value) for choice in schema["anyOf"])
    if "enum" in schema and value not in schema["enum"]:
        return False
    kind = schema.get("type")
    if kind not in KINDS:
        return True
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if isinstance(value, list):
        return not isinstance(schema.get("items"), dict) or all(fits(schema["items"], item) for item in value)
    if not isinstance(value, int | float):
        return True
    above, below = schema.get("exclusiveMinimum", -inf), schema.get("exclusiveMaximum", inf)
    return above < value < below and schema.get("minimum", value) <= value <= schema.get("maximum", value)


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    bounds = [f"from {_figure(low)}"] if low is not None else []
    bounds += [f"above {_figure(above)}"] if above is not None else []
    bounds += [f"up to {_figure(high)}"] if high is not None and high < 10**6 else []
    bounds += [f"below {_figure(below)}"] if below is not None else []
    return "".join(f" {bound}" for bound in bounds[:1]) + "".join(f" and {bound}" for bound in bounds[1:])


def _figure(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
