"""A model without its weights: the tree of its modules, what targets match, and which methods it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftkit.adaptation import check_methods, notices
from peftkit.assembly import Assembled, assemble, methods_of
from peftkit.errors import PeftkitError, hint
from peftkit.inspection.tree import Branch, ModuleTree
from peftkit.layout import GROUPS, Layout, Site
from peftkit.method import METHODS
from peftkit.models.named import NAMED
from peftkit.recipe import Recipe, load, shipped
from peftkit.tasks.source import names as dataset_names

RECIPES = (".yaml", ".yml")
"""What the name of a recipe's file ends in."""
OF_A_MODEL = ("model", "quantization")
"""The sections of a recipe that say something of a model alone."""


@dataclass(frozen=True)
class TargetMatch:
    """What one target names in a model."""

    target: str
    sites: int
    """Linear maps, parts of fused ones each by itself, and stacks of experts."""
    weights: int
    """Numbers in all of them."""
    first: str
    """The id of the first."""


@dataclass(frozen=True)
class Refusal:
    """Why some methods have no place in a model."""

    methods: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ModelView:
    """What `peft modules` shows."""

    model: str
    architecture: str
    layers: int
    parameters: int
    """Each once, where it is tied or shared."""
    branches: list[Branch]
    targets: list[TargetMatch]
    suited: list[str]
    """Methods that the model takes with their defaults."""
    refusals: list[Refusal]
    notices: list[Refusal]
    """What stands where a suited method's default targets are missing, with the methods of which it is true."""


def recipe_of(source: str, overrides: Sequence[str] = ()) -> tuple[Recipe, bool]:
    """Return the recipe that `source` names, or one of the model that it names, and whether it was a recipe.

    A recipe is a YAML file or the name of a shipped one; everything else is a model, and so is a name that both have.
    Beside a model, `overrides` may set keys of `model` and `quantization`. Raises PeftkitError for every mistake.
    """
    if source.endswith(RECIPES) or (source not in NAMED and source in {name for name, _, _ in shipped()}):
        return load(source, overrides), True
    for text in overrides:
        section = text.partition("=")[0].strip().split(".")[0]
        if section not in OF_A_MODEL:
            raise PeftkitError(
                f"override '{text}': found '{section}', and {source} is a model; allowed: keys of "
                f"{' and '.join(OF_A_MODEL)}.{hint(section, OF_A_MODEL)}"
            )
    # A recipe has to name a method and a data set; neither is looked at.
    chosen = {"model": {"name": source}, "method": METHODS.names()[0], "dataset": dataset_names()[0]}
    return load(chosen, overrides), False


def inspect_model(source: str | Recipe, overrides: Sequence[str] = (), targets: Sequence[str] = ()) -> ModelView:
    """Build a model on the meta device, of a recipe or by its name, and say what is in it; no weights are read.

    `targets` are marked in the tree and counted; without any, all roles and groups are counted, and of a recipe the
    places of its methods are marked. Raises PeftkitError for a model that is not there, and for a target that matches
    nothing, with the nearest that does.
    """
    recipe, whole = recipe_of(source, overrides) if isinstance(source, str) else (source, True)
    try:
        assembled = assemble(recipe, weights=False, bare=True)
    except PeftkitError as error:
        guess = "" if whole else hint(str(source), (name for name, _, _ in shipped()))
        raise PeftkitError(f"{error}{guess.replace('Did you mean', 'Did you mean the recipe')}") from None
    layout = assembled.layout
    found = {target: layout.resolve(target) for target in targets}
    marks = _marks(found) if targets or not whole else _adapted(recipe, assembled, layout)
    branches = ModuleTree(layout, marks).branches()
    suited, refusals, standing = _methods(assembled, layout)
    return ModelView(
        model=assembled.name,
        architecture=layout.kind,
        layers=len(layout.blocks),
        parameters=sum(branch.parameters for branch in branches),
        branches=branches,
        targets=[_match(target, sites) for target, sites in (found or _all(layout)).items()],
        suited=suited,
        refusals=refusals,
        notices=standing,
    )


def _marks(found: Mapping[str, Sequence[Site]]) -> dict[str, list[str]]:
    marks: dict[str, list[str]] = {}
    for word, sites in found.items():
        for site in sites:
            marks.setdefault(site.id, []).append(word)
    return marks


def _adapted(recipe: Recipe, assembled: Assembled, layout: Layout) -> dict[str, list[str]]:
    """Return the names of a recipe's methods by the ids of their sites."""
    found: dict[str, list[Site]] = {}
    for method in methods_of(recipe, assembled.tokenizer):
        for sites, _ in check_methods(layout.model, [method], layout):
            found.setdefault(method.name, []).extend(sites.values())
    return _marks(found)


def _all(layout: Layout) -> dict[str, list[Site]]:
    """Return the sites of every group and role that the model has."""
    words = [*GROUPS, *layout.roles()]
    found: dict[str, list[Site]] = {}
    for word in words:
        try:
            found[word] = layout.resolve(word)
        except PeftkitError:
            # A model of state-space layers has no `mlp`.
            continue
    return found


def _match(target: str, sites: Sequence[Site]) -> TargetMatch:
    weights = sum(site.inputs * site.outputs * max(1, site.experts) for site in sites)
    return TargetMatch(target, len(sites), weights, sites[0].id)


def _methods(assembled: Assembled, layout: Layout) -> tuple[list[str], list[Refusal], list[Refusal]]:
    """Return the methods that suit the model with their defaults, why others do not, and what is told of those."""
    suited: list[str] = []
    refused: dict[str, list[str]] = {}
    told: dict[str, list[str]] = {}
    for name, cls in METHODS.items():
        try:
            method = cls.from_options({}).with_tokenizer(assembled.tokenizer)
            check_methods(layout.model, [method], layout)
        except PeftkitError as error:
            refused.setdefault(_without_name(str(error), name), []).append(name)
            continue
        suited.append(name)
        for line in notices([method], layout):
            told.setdefault(_without_name(line, name), []).append(name)
    return suited, _grouped(refused), _grouped(told)


def _grouped(found: Mapping[str, Sequence[str]]) -> list[Refusal]:
    return [Refusal(tuple(names), reason) for reason, names in found.items()]


def _without_name(text: str, name: str) -> str:
    return text.removeprefix(f"{name}: ").replace(f"the method '{name}' ", "the method ")
