"""A folder of packed weights, as `peft quantize` writes it; it is loaded as it is stored."""

from __future__ import annotations

from pathlib import Path

from peftkit.errors import PeftkitError
from peftkit.models import build, packed_folder
from peftkit.models.loaded import LoadedModel
from peftkit.models.quantize import Quantization
from peftkit.models.sources import ModelFiles, Request, ready, with_settings


def load(request: Request, files: ModelFiles) -> LoadedModel:
    """Read the folder; without weights a model on the meta device is packed as the folder is."""
    folder, trust = files.folder, request.section.trust_remote_code
    dtype = request.dtype_of(files.dtype)
    if not request.weights:
        return ready(request, build.on_meta(files.config, dtype, trust), files.tokenizer, weights=files.weights)
    model, packed = build.outline(files.config, dtype, trust, request.quantization)
    original = packed_folder.fill(model, folder, packed, dtype)
    mark = packed_folder.facts(folder)["storage"].get("calibrated")
    storage = {**request.quantization.description(), **({"calibrated": mark} if mark else {})}
    return ready(
        request, with_settings(model, folder), files.tokenizer, weights=files.weights, mark=original, storage=storage
    )


def stored(request: Request, folder: Path) -> Quantization:
    """Return how a folder stores its weights; a recipe that asks for anything else is refused."""
    quantization = Quantization.described(packed_folder.facts(folder)["storage"])
    if request.packs and request.quantization != quantization:
        own = request.quantization
        asked = own.in_words() if own.packs else f"a budget of {request.budget:g} bits a weight asks"
        raise PeftkitError(
            f"quantization: the weights in {folder} are packed already, as {quantization.in_words()}, and cannot be "
            f"packed as {asked}: leave quantization out, or name the original model."
        )
    return quantization
