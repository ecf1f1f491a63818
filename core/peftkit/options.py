"""Options that a recipe writes for an entry of a registry: a frozen dataclass, checked strictly, plain values again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

from peftkit.errors import PeftkitError, unknown
from peftkit.registry import Registry

Entry = TypeVar("Entry", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A frozen dataclass whose fields are the options of the entry `name`; their docstrings are their help.

    The base of a kind names its `registry`, which each subclass with a name enters.
    """

    name: ClassVar[str]
    _registry: ClassVar[Registry[Any]]

    def __init_subclass__(cls, name: str | None = None, registry: Registry[Any] | None = None, **rest: Any):
        super().__init_subclass__(**rest)
        if registry is not None:
            cls._registry = registry
        if name is not None:
            cls.name = name
            cls._registry.add(name, cls)

    @classmethod
    def from_options(cls: type[Entry], options: Mapping[str, Any]) -> Entry:
        """Build the entry from a recipe's options; a PeftkitError tells every unknown key and wrong value at once."""
        from pydantic import ValidationError

        allowed = [field.name for field in dataclasses.fields(cls)]
        faults = [unknown("option", key, allowed) for key in options if key not in allowed]
        if faults:
            raise PeftkitError(f"{cls.name}: " + " ".join(faults))
        try:
            # The JSON mode is strict about types and still takes a list for a tuple, as YAML needs.
            return _checker(cls).validate_json(json.dumps(dict(options)))
        except ValidationError as error:
            faults = [
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}, found {fault['input']!r}"
                for fault in error.errors()
            ]
            raise PeftkitError(f"{cls.name}: " + "; ".join(faults)) from None
        except (TypeError, ValueError) as error:
            raise PeftkitError(f"{cls.name}: the options are not plain values ({error}).") from None

    def options(self) -> dict[str, Any]:
        """Return the options as plain JSON values, enough to build the entry again."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@cache
def _checker(cls: type[Options]) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    cls.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
    return TypeAdapter(cls)


def schema(cls: type[Options]) -> dict[str, Any]:
    """Return the JSON schema of an entry's options, each with its docstring as description."""
    described = _checker(cls).json_schema()
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base) and issubclass(base, Options):
            # The docstrings of inherited fields stand in the base's source alone.
            for option, facts in _checker(base).json_schema().get("properties", {}).items():
                if "description" in facts:
                    described["properties"][option].setdefault("description", facts["description"])
    return described
