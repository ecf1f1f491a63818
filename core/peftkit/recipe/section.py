"""The base of a recipe's sections, and the types that several of them use."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from peftkit import files
from peftkit.errors import PeftkitError

Text = Annotated[str, Field(min_length=1, max_length=4096)]


def _expanded(path: str) -> str:
    # What is no path, such as the name of a model, stays as it is written.
    try:
        return str(files.expanded(path)) if path.startswith("~") else path
    except PeftkitError as error:
        raise ValueError(str(error)) from None


PathText = Annotated[Text, AfterValidator(_expanded)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Entry = Text | Annotated[dict[Text, dict[str, Any]], Field(min_length=1, max_length=1)]
"""An entry of a registry: its name, or {name: options} where it has options."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe; unknown keys and values of another type are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
    short: ClassVar[str | None] = None
    """The key that is meant where plain text stands in the section's place."""
