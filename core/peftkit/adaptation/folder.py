"""Keep an adaptation in a folder, and attach it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from peftkit import __version__, files, tensor_file
from peftkit.adaptation.adaptation import Adaptation
from peftkit.adaptation.attach import attach
from peftkit.errors import PeftkitError
from peftkit.method import build_methods
from peftkit.quantization.storage import in_words

FORMAT = 1
TENSORS = "adapter.safetensors"
DESCRIPTION = "adapter.json"
OBJECTIVE = "objective"
"""The key of the description, and the module's name in the adaptation."""


def save_adapter(
    adaptation: Adaptation,
    folder: Path,
    base: Mapping[str, Any],
    *,
    replace: bool = True,
    origin: Mapping[str, Any] | None = None,
    objective: Mapping[str, Any] | None = None,
) -> None:
    """Write the adaptation's folder: `adapter.safetensors` with its tensors alone, `adapter.json` with what they mean.

    `base` tells the base model: `name` and `fingerprint`, and whatever else should travel along; `origin` what the
    adapter was made of, where it was not trained; `objective` the `name` and `options` of one whose module was trained
    beside the adapters. A named combination is written as `Method.parts` says, in the form
    that `finish` left it in.
    """
    description = {
        "format": FORMAT,
        "peftkit": __version__,
        "methods": [{"name": method.name, "options": method.options()} for method in adaptation.described],
        "base": dict(base),
        "trainable_parameters": adaptation.trainable,
    }
    description |= {} if origin is None else {"combined": dict(origin)}
    description |= {} if objective is None else {OBJECTIVE: dict(objective)}
    with files.new_folder(folder, replace=replace) as temporary:
        tensor_file.write_tensors(temporary / TENSORS, adaptation.state())
        files.write_json(temporary / DESCRIPTION, description)


def describe_adapter(folder: Path) -> dict[str, Any]:
    """Read `adapter.json`; a missing, damaged or newer one is a PeftkitError."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise PeftkitError(
            f"{folder} holds no adapter: there is no {DESCRIPTION} in it. Name the adapter folder of a run."
        )
    description = files.read_json(path)
    try:
        version = description["format"]
        [(str(method["name"]), dict(method["options"])) for method in description["methods"]]
        description["base"]["name"]
    except (TypeError, KeyError, ValueError) as error:
        raise PeftkitError(f"{path} does not describe an adapter ({type(error).__name__}: {error}).") from None
    if version != FORMAT:
        raise PeftkitError(
            f"{path} has the format {version!r}, and this version of peftkit reads {FORMAT}: upgrade it."
        )
    return description


def load_adapter(
    model: nn.Module,
    folder: Path,
    fingerprint: str | None,
    name: str = "default",
    *,
    quantization: Mapping[str, Any] | None = None,
    keep_base: bool = True,
    modules: Mapping[str, nn.Module] | None = None,
) -> Adaptation:
    """Attach the adaptation of a folder to its base model.

    Raises PeftkitError for another base (told by `fingerprint`; None skips the comparison), another storage of it
    (`quantization`; None, as for a base that stands in its original weights, skips that), a damaged file, or
    tensors that are missing, unexpected or misshaped; the model is then as before. Without the `modules` that were
    trained beside it, an adapter that has some is refused.
    """
    description = describe_adapter(folder)
    if description.get(OBJECTIVE) is not None and not modules:
        raise PeftkitError(
            f"the adapter in {folder} was trained for the objective '{description[OBJECTIVE]['name']}', by a layer in "
            "the place of the model's own head, which only `peft eval` reads: without it no text is generated, and "
            "nothing of it can be merged, exported or combined."
        )
    base = description["base"]
    if fingerprint is not None and base.get("fingerprint") not in (None, fingerprint):
        raise PeftkitError(
            f"the adapter in {folder} was made for another base model ({base['name']}): its weights differ from the "
            "loaded "
            "one's. Name the model that it was trained on."
        )
    trained_on = base.get("quantization")
    if quantization is not None and trained_on is not None and formats_of(trained_on) != formats_of(quantization):
        raise PeftkitError(
            f"the adapter in {folder} was trained on weights stored as {in_words(trained_on)}, and the model is "
            f"loaded as {in_words(quantization)}: use the quantization that it was trained with."
        )
    tensors = tensor_file.read_tensors(folder / TENSORS)
    methods = build_methods([(method["name"], method["options"]) for method in description["methods"]])
    adaptation = attach(model, methods, name, keep_base=keep_base, loading=True)
    adaptation.modules.update(modules or {})
    try:
        adaptation.load_state(tensors)
    except PeftkitError as error:
        if keep_base:
            adaptation.remove()
        raise PeftkitError(f"{folder / TENSORS}: {error}") from None
    return adaptation


def formats_of(storage: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the values of weights stored so: earlier descriptions hold other keys too."""
    return {key: storage.get(key) for key in ("format", "options", "modules")}
