"""`peft list`: the names that a recipe can use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Annotated

import typer

from peftkit_cli.terminal import table

LARGE = (4096, 4096)
"""The layer for which bits are told."""
Listing = tuple[Sequence[str], list[tuple[str, ...]]]


class Kind(str, Enum):
    """What can be listed."""

    methods = "methods"
    recipes = "recipes"
    datasets = "datasets"
    models = "models"
    quantization = "quantization"
    pruning = "pruning"
    formats = "formats"
    loggers = "loggers"


KINDS = "What to list: " + ", ".join(kind.value for kind in Kind) + "."


def list_entries(
    kind: Annotated[Kind, typer.Argument(metavar="KIND", help=KINDS)],
) -> None:
    """List the names that a recipe or a command can use."""
    heads, rows = LISTINGS[kind]()
    table(heads, rows)


def methods() -> Listing:
    """List the methods with where they attach, whether they merge into the weights, and their papers."""
    from peftkit.method import METHODS

    rows = [
        (name, method.port, method.family, "yes" if method.mergeable else "no", method.paper)
        for name, method in METHODS.items()
    ]
    return ("method", "attaches to", "family", "merges", "paper"), rows


def recipes() -> Listing:
    """List the recipes that travel with the package with the first line of each."""
    from peftkit.recipe import shipped

    return ("recipe", "what it is"), [(name, headline) for name, _, headline in shipped()]


def datasets() -> Listing:
    """List the data sets with what they are and whether the package brings a small one of the same form."""
    from peftkit.tasks import TASKS
    from peftkit.tasks.source import PREFIX, bundled

    shipped = bundled()
    rows = [
        (name, first_line(type(task)), str(task.hub or "–"), PREFIX + name if name in shipped else "–")
        for name, task in TASKS.items()
    ]
    return ("dataset", "what it is", "Hugging Face id", "in the package"), rows


def models() -> Listing:
    """List the models that are known by a name; a recipe also takes any Hugging Face id, folder or GGUF file."""
    from peftkit.models.named import NAMED

    rows = [(name, first_line(find)) for name, find in NAMED.items()]
    rest = ("ORG/NAME, a folder or a GGUF file", "any causal model that transformers opens")
    return ("model", "what it is"), [*rows, rest]


def quantization() -> Listing:
    """List the formats in which a frozen model can be held, with their stored bits for each weight of a large layer."""
    from peftkit.quantization.quantizer import QUANTIZERS
    from peftkit.recipe.choices import NO_FORMAT

    rows = [(NO_FORMAT, "–", "–", "The weights stay as they are.")]
    for name, cls in QUANTIZERS.items():
        options = ", ".join(f"{key} {str(value).lower()}" for key, value in cls().options().items())
        rows.append((name, f"{cls().bits_per_weight(LARGE):.3f}", options, cls.summary))
    return ("quantization", "bits", "options", "what it is"), rows


def pruning() -> Listing:
    """List the ways to choose weights of a frozen model that are set to zero."""
    from peftkit.pruning import PRUNERS

    return ("pruning", "what goes", "paper"), [(name, cls.summary, cls.paper) for name, cls in PRUNERS.items()]


def formats() -> Listing:
    """List the forms in which `peft export` writes."""
    from peftkit.export import FORMATS

    rows = [(name, first_line(form)) for name, form in FORMATS.items()]
    return ("format", "what it is"), rows


def loggers() -> Listing:
    """List what `train.log` may name, with the extra that installs it."""
    from peftkit.loggers import LOGGERS

    return ("logger", "what it is", "install"), [
        (name, logger.summary, f"peftkit[{logger.extra}]") for name, logger in LOGGERS.items()
    ]


def first_line(thing: object) -> str:
    """Return the first line of a docstring."""
    return (thing.__doc__ or "").strip().partition("\n")[0]


LISTINGS: dict[Kind, Callable[[], Listing]] = {
    Kind.methods: methods,
    Kind.recipes: recipes,
    Kind.datasets: datasets,
    Kind.models: models,
    Kind.quantization: quantization,
    Kind.pruning: pruning,
    Kind.formats: formats,
    Kind.loggers: loggers,
}
