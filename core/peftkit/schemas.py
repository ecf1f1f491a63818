"""What is read back from files is held against a schema before anything uses it; a fault names file, key and value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails

from peftkit import files
from peftkit.errors import PeftkitError, nearest

DEPTH = 100
"""Levels of nesting: what we write has ten at most."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
WANTED = {
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dataclass_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "string_unicode": "text that UTF-8 can write",
    "string_too_short": "text that is not empty",
    "too_short": "at least one entry",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a number that is finite",
    "bool_type": "true, false",
    "none_required": "null",
}
"""What is allowed, by the kind of fault."""


KINDS = ("str", "int", "float", "bool", "none", "dict", "list")
"""What pydantic puts into a place for the kind that it tried."""


class Stored(BaseModel):
    """An object in a file that is read back; keys that a subclass does not name are left as they are."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


def check(schema: Any, value: Any, place: str, more: str = "") -> Any:
    """Return `value`, found at `place`, where it is what `schema` says: a class, the fields of a dataclass, or a type.

    Raises PeftkitError that tells the first fault: the key, what was found, what is allowed, and then `more`.
    """
    if fault := _unwritable(value):
        raise PeftkitError(f"{place}: {fault}.{more and ' '}{more}")
    try:
        _adapter(schema).validate_python(value)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        fault = told(faults)
        raise PeftkitError(f"{place}: {fault}{'' if fault.endswith('?') else '.'}{more and ' '}{more}") from None
    return value


def read(path: Path, schema: Any, more: str = "", what: str = "") -> Any:
    """Read a JSON file that is what `schema` says; a fault of any kind is a PeftkitError, as `check` tells it.

    `what` says what the file is not, where it is not what the schema says.
    """
    try:
        value = files.read_json(path)
    except PeftkitError as error:
        raise PeftkitError(f"{error}{more and ' '}{more}") from None
    return check(schema, value, f"{path} {what}".rstrip(), more)


def told(faults: Iterable[ErrorDetails]) -> str:
    """Tell the faults of one value; of those of the kinds that a key may have, what each allows."""
    first, *others = faults
    names = [str(step) for step in first["loc"] if str(step) not in KINDS and "[" not in str(step)]
    key = ".".join(names)
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "extra_forbidden":
        return f"{key} is not a key of it"
    same = [first, *(fault for fault in others if fault["input"] is first["input"])]
    allowed = ", or ".join(dict.fromkeys(map(_allowed, same)))
    return f"{key}{key and ': '}found {show(first['input'])}; allowed: {allowed}"


def _allowed(fault: ErrorDetails) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "literal_error":
            choices = [choice.strip("'") for choice in str(context["expected"]).replace(" or ", ", ").split(", ")]
            guess = nearest(fault["input"], choices) if isinstance(fault["input"], str) else None
            return f"{', '.join(choices)}" + (f"; did you mean '{guess}'?" if guess else "")
        case kind if kind in WANTED:
            return WANTED[kind]
        case "value_error":
            return str(context["error"])
    return fault["msg"].removeprefix("Input should be ").removeprefix("Value should be ").lower()


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    kind: Any = schema
    if dataclasses.is_dataclass(schema) and isinstance(schema, type):
        # In strict mode pydantic takes an instance of a dataclass, and here are its fields.
        hints, known = get_type_hints(schema), dataclasses.fields(schema)
        fields: dict[str, Any] = {field.name: (hints[field.name], _default(field)) for field in known}
        return TypeAdapter(
            create_model(schema.__name__, __config__=Stored.model_config | {"extra": "forbid"}, **fields)
        )
    owns = isinstance(kind, type) and issubclass(kind, BaseModel)
    return TypeAdapter(kind, config=None if owns else Stored.model_config)


def _default(field: dataclasses.Field[Any]) -> Any:
    return ... if field.default is dataclasses.MISSING else field.default


def _unwritable(value: Any) -> str | None:
    """Say what in a JSON value could not be written again: deep nesting, or text that UTF-8 has no bytes for."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            return f"nested more than {DEPTH} levels deep"
        names = [name for each in level if isinstance(each, dict) for name in each]
        for text in (text for text in (*level, *names) if isinstance(text, str) and not text.isascii()):
            try:
                text.encode()
            except UnicodeEncodeError:
                return f"found {show(text)}, which holds half of a surrogate pair; allowed: text that UTF-8 can write"
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [child for children in inner for child in children]
    return None


def show(value: Any) -> str:
    """Tell a value and its kind, cut to a readable length: `'abc' (text)`."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    match value:
        case None:
            return "null"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case bool():
            return str(value).lower()
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kinds.get(type(value), type(value).__name__)})"
