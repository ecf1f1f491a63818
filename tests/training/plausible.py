"""Values that the schema of recipes allows, or nearly: at its borders, and of any of its forms."""

from __future__ import annotations

import copy
import random
from typing import Any

import odd_values

from peftkit.recipe import schema
from peftkit.recipe.compose import part_names

SCHEMA = schema()
SECTIONS = {"": SCHEMA} | {
    key: SCHEMA["$defs"][form["$ref"].rsplit("/", 1)[-1]]
    for key, facts in SCHEMA["properties"].items()
    for form in facts.get("anyOf", ())
    if form.get("$ref", "").endswith("Section")
}
"""The schema of the top and of each section."""
WORDS = [*part_names(), *(name.split("-", 1)[1] for name in SCHEMA["$defs"] if name.startswith("method-"))]
WORDS += [
    "linear",
    "attention",
    "mlp",
    "experts",
    "head",
    "*",
    "layers.0.*",
    "0-1",
    "1,",
    "9-0",
    "lora+ia3",
    "all",
    "mezo",
]
WORDS += [
    "BLEU-4",
    "-TER",
    "validation_loss",
    "classification",
    "nf4",
    "int8",
    "loftq",
    "pissa",
    "6GB",
    "1B",
    "-1GB",
    "auto",
]


def plausible(facts: dict[str, Any], chance: random.Random) -> Any:
    """Draw a value that the schema of a key allows, or nearly: at its borders, and of any of its forms."""
    if "default" in facts and chance.random() < 0.3:
        return copy.deepcopy(facts["default"])
    if "$ref" in facts:
        facts = SCHEMA["$defs"][facts["$ref"].rsplit("/", 1)[-1]]
    if "anyOf" in facts:
        return plausible(chance.choice(facts["anyOf"]), chance)
    if "enum" in facts or "const" in facts:
        return chance.choice(facts.get("enum") or [facts["const"]])
    match facts.get("type"):
        case "boolean":
            return chance.random() < 0.5
        case "integer":
            return chance.choice([facts.get("minimum", 0), facts.get("maximum", 2**40), 1, 2, 2, 3, 4, 10**5])
        case "number":
            return chance.choice([1e-30, 1e-4, 0.5, 1, facts.get("maximum", 1e30), facts.get("minimum", 1e-300)])
        case "string":
            return chance.choice([*WORDS, *odd_values.ODD])
        case "array":
            return [plausible(facts.get("items", {}), chance) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
        case "object":
            known = facts.get("properties", {})
            below = facts.get("additionalProperties") or {}
            if not known:
                return {chance.choice(WORDS): plausible(below if isinstance(below, dict) else {}, chance)}
            chosen = chance.sample(sorted(known), min(len(known), facts.get("maxProperties", chance.choice([1, 2, 3]))))
            return {key: plausible(known[key], chance) for key in chosen}
        case "null":
            return None
    return odd_values.value(chance)
