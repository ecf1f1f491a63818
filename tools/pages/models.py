"""The page of models: which methods each family of decoders takes, found by attaching them to tiny models."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from peftkit.adaptation import check_methods
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.quiet import quiet
from peftkit.quantization.quantizer import formats
from peftkit.recipe import ModelSection, QuantizationSection
from zoo import IMAGE_TEXT, UNMADE, made, write

REASONS = {
    "no biases": r"has no bias\b",
    "heads in code of its own": r"whose heads cannot be told apart",
    "no norms with weights": r"has no norm with weights of its own",
    "no attention to enter": r"has no attention that an adapter can enter",
    "no feed-forward part": r"have no module of the role 'mlp'|has no feed-forward part",
    "nothing to train": r"finds nothing to train",
    "weights shared by layers": r"is not stored as",
}
"""Why a method may be refused by a model, each with what the message says; there is no other reason."""
SMALL = {"rank": 2, "bottleneck": 4, "length": 3, "prefix_length": 3, "projection": 8, "hidden": 8, "samples": 2}
SMALL |= {"division": 2, "pieces": 2}
"""Sizes of methods that suit tiny models."""
GROUP = 8
"""Weights of a group in packed layers of tiny models."""
HEAD = """\
# Models

The model of a recipe is any decoder that transformers loads. Below is every family that transformers {version} knows,
with the methods that it takes: y, or the reason for which the method has no place in it. The page is written by
attaching each method with its defaults to a tiny random model of each family (`make pages`), and
`tests/laws/test_every_family.py` trains, saves, merges and packs them. Families marked with * take images too: their
text decoder is trained on text.

"""


def models_page() -> str:
    """Return the page: what the columns stand for, a row for each family, and the families without a model."""
    found = {family: taken(family) for family in made()}
    groups = columns(found)
    legend = ["| column | methods |", "|---|---|"]
    legend += [f"| {label} | {', '.join(f'`{name}`' for name in names)} |" for label, names in groups.items()]
    rows = [f"| family | {' | '.join(groups)} |", "|" + "---|" * (len(groups) + 1)]
    for family, words in found.items():
        mark = "*" if family in IMAGE_TEXT else ""
        rows.append(f"| {family}{mark} | {' | '.join(words[names[0]] for names in groups.values())} |")
    unmade = [f"- {family}: {why}" for family, why in UNMADE.items()]
    closing = f"## Not held\n\nOf these no tiny model is made:\n\n{chr(10).join(unmade)}\n"
    parts = [HEAD.format(version=transformers.__version__), "\n".join(legend), "\n\n", "\n".join(rows), "\n\n", closing]
    return "".join(parts)


def taken(family: str) -> dict[str, str]:
    """Return "y" or the reason of its refusal for each method on a family."""
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            write(Path(folder), family)
        layouts = {
            trait: _layout(Path(folder), trait) for trait in dict.fromkeys(cls.needs for _, cls in METHODS.items())
        }
    return {name: _word(name, layouts[cls.needs]) for name, cls in METHODS.items()}


def reason(message: str) -> str:
    """Return the reason of a refusal; AssertionError for one that is none of `REASONS`."""
    found = [name for name, words in REASONS.items() if re.search(words, message)]
    assert found, f"refused: {message}"
    return found[0]


def small(name: str, **more: Any) -> dict[str, Any]:
    """Return the options of a method that suit a tiny model, with `more`, as far as it has them."""
    known = METHODS[name].from_options({}).options()
    return {key: value for key, value in (SMALL | more).items() if key in known}


def columns(found: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Put the methods that every family answers alike into one column, called after the first of them."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in METHODS.names():
        groups.setdefault(tuple(words[name] for words in found.values()), []).append(name)
    return {_label(names): names for names in groups.values()}


def _label(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _layout(folder: Path, trait: str | None) -> Layout:
    """Return the layout of the model in a folder, stored with a trait."""
    section = None
    if trait is not None:
        section = QuantizationSection(format=formats(trait)[0], options={"group_size": GROUP})
    return Layout(load(ModelSection(name=str(folder)), quantization=section).module)


def _word(name: str, layout: Layout) -> str:
    try:
        check_methods(layout.model, [METHODS[name].from_options(small(name))], layout)
    except PeftkitError as error:
        return reason(str(error))
    return "y"
