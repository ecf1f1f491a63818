"""Keep an adaptation in a folder, and attach it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftkit import __version__, files, tensor_file
from peftkit.adaptation.adaptation import Adaptation
from peftkit.adaptation.attach import attach, check_methods
from peftkit.adaptation.building import build_all, outline
from peftkit.adaptation.description import DESCRIPTION, FORMAT, IMPORTED, OBJECTIVE, describe_adapter
from peftkit.adaptation.part import Part
from peftkit.adaptation.state import Child, State
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import Method, build_methods, expand
from peftkit.ports.embedding import SoftPrompt
from peftkit.quantization.storage import in_words

TENSORS = "adapter.safetensors"


def save_adapter(
    adaptation: Adaptation,
    folder: Path,
    base: Mapping[str, Any],
    *,
    replace: bool = True,
    origin: Mapping[str, Any] | None = None,
    objective: Mapping[str, Any] | None = None,
    imported: Mapping[str, Any] | None = None,
) -> None:
    """Write the adaptation's folder: `adapter.safetensors` with its tensors alone, `adapter.json` with what they mean.

    `base` tells the base model: `name` and `fingerprint`, and whatever else should travel along; `origin` what the
    adapter was made of, where it was not trained, and `imported` the `library` and `files` of a folder that it was read
    from; `objective` the `name` and `options` of one whose module was trained
    beside the adapters. A named combination is written as `Method.parts` says, in the form that `finish` left it in; of
    children, and of an adapter that it went on from, where they came from.
    """
    description = {
        "format": FORMAT,
        "peftkit": __version__,
        "methods": [{"name": method.name, "options": method.options()} for method in adaptation.described],
        "base": dict(base),
        "trainable_parameters": adaptation.trainable,
    }
    description |= {} if origin is None else {"combined": dict(origin)}
    description |= {} if imported is None else {IMPORTED: dict(imported)}
    description |= {} if objective is None else {OBJECTIVE: dict(objective)}
    children = {name: dict(child.origin) for name, child in adaptation.children.items()}
    description |= {"children": children} if children else {}
    description |= {} if adaptation.went_on_from is None else {"went_on_from": dict(adaptation.went_on_from)}
    with files.new_folder(folder, replace=replace) as temporary:
        tensor_file.write_tensors(temporary / TENSORS, adaptation.state())
        files.write_json(temporary / DESCRIPTION, description)


def load_adapter(
    model: nn.Module,
    folder: Path,
    fingerprint: str | None,
    name: str = "default",
    *,
    quantization: Mapping[str, Any] | None = None,
    keep_base: bool = True,
    adapters: Mapping[str, Path] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> Adaptation:
    """Attach the adaptation of a folder to its base model; `adapters` are the folders of the children that it names.

    Raises PeftkitError for another base (told by `fingerprint`; None skips the comparison), another storage of it
    (`quantization`; None, as for a base that stands in its original weights, skips that), a damaged file, children
    that are not those which it was built from, or tensors that are missing, unexpected or misshaped; the model is then
    as before. Without the `modules` that were trained beside it, an adapter that has some is refused.
    """
    description = describe_adapter(folder)
    if description.get(OBJECTIVE) is not None and not modules:
        raise PeftkitError(
            f"the adapter in {folder} was trained for the objective '{description[OBJECTIVE]['name']}', by a layer in "
            "the place of the model's own head, which only `peft eval` reads: without it no text is generated, and "
            "nothing of it can be merged, exported or combined."
        )
    base = description["base"]
    check_loaded(folder, base, fingerprint, quantization)
    children = load_children(model, adapters or {}, {**base, "fingerprint": fingerprint, "quantization": quantization})
    check_children(folder, description.get("children", {}), children)
    methods = _methods(folder, description)
    tensors = _read_fitting(folder / TENSORS, model, methods, children, modules or {})
    adaptation = attach(model, methods, name, keep_base=keep_base, loading=True, children=children)
    adaptation.modules.update(modules or {})
    try:
        adaptation.load_state(tensors)
    except PeftkitError as error:
        if keep_base:
            adaptation.remove()
        raise PeftkitError(f"{folder / TENSORS}: {error}") from None
    return adaptation


def find_adapter(run: Path) -> Path:
    """Return the folder with the adapter: the run's, or `run` itself; PeftkitError where there is none."""
    with files.explained("read", run):
        for folder in (run / "adapter", run):
            if (folder / DESCRIPTION).is_file():
                return folder
        is_run = (run / "recipe.yaml").is_file()
    if is_run:
        raise PeftkitError(f"the run {run} has no adapter: its training has not ended. Resume it first.")
    foreign = (run / "adapter_config.json").is_file()
    way = f" An adapter of another library becomes a run by `peft import {run} --output RUN`." if foreign else ""
    raise PeftkitError(f"{run} is neither a run folder nor an adapter folder: there is no {DESCRIPTION} in it.{way}")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of an adapter's files by name."""
    sums = {}
    for name in (DESCRIPTION, TENSORS):
        with files.explained("read", folder / name):
            sums[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return sums


def check_base(one: str, base: Mapping[str, Any], other: str, its: Mapping[str, Any]) -> None:
    """Refuse adapters, called `one` and `other`, whose bases as `save_adapter` tells them differ, or their storage."""
    marks = base.get("fingerprint"), its.get("fingerprint")
    if None not in marks and marks[0] != marks[1]:
        raise PeftkitError(
            f"{one} and {other} stand on different base models ({base['name']} and {its['name']}, whose weights "
            "differ): only adapters of one base can be combined."
        )
    storage, other_storage = base.get("quantization"), its.get("quantization")
    if storage and other_storage and not same_storage(storage, other_storage):
        stored = f"{in_words(storage)} and {in_words(other_storage)}"
        raise PeftkitError(
            f"{one} and {other} were trained on weights stored as {stored}: only adapters of one storage can be "
            "combined."
        )


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a file that hold NaN or infinity."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PeftkitError(f"{path}: the tensor {key} holds NaN or infinity.")


def load_children(model: nn.Module, runs: Mapping[str, Path], base: Mapping[str, Any]) -> dict[str, Child]:
    """Build and load the adapters of run or adapter folders for `attach`, by name; the model is left as it is.

    `base` is what `save_adapter` is told of the model; a mark that is None is not compared. What an objective trained
    beside an adapter is left out. Raises PeftkitError for adapters of another base or storage, damaged ones, and those
    that are more than an adapter at each of some sites.
    """
    children: dict[str, Child] = {}
    bases = [("this run", base)]
    for name, run in runs.items():
        folder, label = find_adapter(run), f"adapters.{name} ({run})"
        description = describe_adapter(folder)
        for other, its in bases:
            check_base(label, description["base"], other, its)
        bases.append((label, description["base"]))
        if description.get("children"):
            raise PeftkitError(f"{label} was built from adapters itself: name those that were trained on the base.")
        methods = _methods(folder, description)
        tensors = _read_fitting(folder / TENSORS, model, methods, {}, None)
        check_finite(folder / TENSORS, tensors)
        state = _build(model, label, methods)
        try:
            state.load_state(tensors)
        except PeftkitError as error:
            raise PeftkitError(f"{folder / TENSORS}: {error}") from None
        origin = {"folder": str(run), "files": digests(folder), "fingerprint": description["base"].get("fingerprint")}
        children[name] = Child(state, origin)
    return children


def _read_fitting(
    path: Path,
    model: nn.Module,
    methods: Sequence[Method],
    children: Mapping[str, Child],
    modules: Mapping[str, nn.Module] | None,
) -> dict[str, Tensor]:
    """Read tensors, once their shapes are seen to be those of the methods: `modules` are trained beside the adapters.

    Without any, tensors of such modules are left out. Raises PeftkitError that names the file and the tensor.
    """
    file = tensor_file.TensorFile(path)
    names = [name for name in file.names if modules is not None or name.partition("/")[0].isdecimal()]
    try:
        state = outline(model, methods, check_methods(model, methods), children)
        state.modules.update(modules or {})
        state.fit({name: torch.empty(file.shape(name), device="meta") for name in names})
    except PeftkitError as error:
        raise PeftkitError(f"{path}: {error}") from None
    return {name: file.read(name) for name in names}


def _build(model: nn.Module, label: str, methods: Sequence[Method]) -> State:
    """Build the adapters of a child without seating them; what is no adapter at a site is refused."""
    state = State(model, Layout(model), [], label, tuple(methods))
    for method, (sites, own) in zip(expand(methods), check_methods(model, methods, state.layout), strict=True):
        adapters, shared = build_all(model, method, sites, label, start=False, children={})
        twice = next((site for part in state.parts for site in part.adapters if site in adapters), None)
        reason = f"trains the model's own {own[0]}" if own else None
        if method.splits_base:
            reason = "takes its start out of the frozen weights, which would lack it"
        if any(isinstance(adapter, SoftPrompt) for adapter in adapters.values()):
            reason = "is a soft prompt, whose rows stand in front of each text"
        if twice is not None:
            reason = f"has a second adapter at {twice}"
        if reason is not None:
            raise PeftkitError(f"{label}: '{method.name}' {reason}; a site is given one adapter of each name alone.")
        state.parts.append(Part(method, adapters, {}, shared=shared))
    return state


def check_children(folder: Path, recorded: Mapping[str, Any], children: Mapping[str, Child]) -> None:
    """Refuse children that are not those from which the adapter in `folder` was built."""
    if set(recorded) != set(children):
        wanted, named = (", ".join(sorted(names)) or "none" for names in (recorded, children))
        raise PeftkitError(
            f"the adapter in {folder} was built from the adapters: {wanted}; named are: {named}. Name the same ones "
            "under `adapters` in the recipe.yaml of its run."
        )
    for name, child in children.items():
        for file, digest in child.origin["files"].items():
            if recorded[name]["files"].get(file) != digest:
                raise PeftkitError(
                    f"adapters.{name} ({child.origin['folder']}): {file} changed since the adapter in {folder} was "
                    "built from it: bring the earlier file back, or train again."
                )


def check_loaded(
    folder: Path, base: Mapping[str, Any], fingerprint: str | None, quantization: Mapping[str, Any] | None
) -> None:
    """Refuse an adapter of another `base` than the model that is loaded, or of another storage of it."""
    if fingerprint is not None and base.get("fingerprint") not in (None, fingerprint):
        raise PeftkitError(
            f"the adapter in {folder} was made for another base model ({base['name']}): its weights differ from the "
            "loaded "
            "one's. Name the model that it was trained on."
        )
    trained_on = base.get("quantization")
    if quantization is None or trained_on is None:
        return
    if formats_of(trained_on) != formats_of(quantization):
        raise PeftkitError(
            f"the adapter in {folder} was trained on weights stored as {in_words(trained_on)}, and the model is "
            f"loaded as {in_words(quantization)}: use the quantization that it was trained with."
        )
    if not same_storage(trained_on, quantization):
        raise PeftkitError(
            f"the adapter in {folder} was trained on weights that were pruned or packed otherwise ("
            f"{in_words(trained_on)}): name the run that it was trained in, or one on the same base, in "
            "calibration.weights."
        )


def _methods(folder: Path, description: Mapping[str, Any]) -> tuple[Method, ...]:
    try:
        return build_methods([(method["name"], method["options"]) for method in description["methods"]])
    except PeftkitError as error:
        raise PeftkitError(f"{folder / DESCRIPTION}: {error}") from None


def same_storage(storage: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Say whether weights stored so are the same; those that examples decide by their mark, where both are known."""
    marks = {storage.get("calibrated"), other.get("calibrated")} - {None}
    return formats_of(storage) == formats_of(other) and len(marks) <= 1


def formats_of(storage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the values of weights stored so: earlier descriptions hold other keys too."""
    return {key: storage.get(key) for key in ("format", "options", "modules", "pruning")}
