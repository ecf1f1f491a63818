"""Where a model's files are, and whether they are whole: names become folders, and only safetensors is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from huggingface_hub import constants
from pydantic import Field

from peftkit import files, hub, schemas
from peftkit.errors import PeftkitError, hint, unknown
from peftkit.models.named import NAMED
from peftkit.schemas import Stored, Text
from peftkit.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch

MODEL = "model"
"""What errors begin with: the key of a recipe."""
SUFFIX = ".gguf"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
DESCRIPTION_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class ModelDescription(Stored):
    """What every config.json has."""

    model_type: Text
    auto_map: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None


class ShardIndex(Stored):
    """Which shard holds each tensor."""

    weight_map: Annotated[dict[str, Text], Field(min_length=1)]


class GenerationSettings(Stored):
    """What is taken of generation_config.json."""

    eos_token_id: int | list[int] | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None


def find(
    name: str, revision: str | None = None, *, weights: bool = True, code: bool = False, gguf: str | None = None
) -> Path:
    """Return the folder or the GGUF file of the model `name`: known by name, on this disk, or fetched from the hub.

    `gguf` names the file in a folder or a repository. Without `weights` only the description and the tokenizer are
    fetched, of what is no GGUF file; with `code` the repository's Python files too. Raises PeftkitError for what is not
    there, and where the hub cannot be reached.
    """
    if name.startswith("bundled/"):
        if name not in NAMED:
            raise PeftkitError("model: " + unknown("bundled model", name, _travelling()))
        return NAMED[name]()
    place = files.expanded(name)
    if not place.exists() and name in NAMED:
        place = NAMED[name]()
    if place.is_dir():
        return _in_folder(place, gguf)
    if place.exists():
        if gguf is not None or place.suffix != SUFFIX:
            way = f"leave out model.gguf, {gguf!r}" if gguf is not None else f"name a {SUFFIX} file, or"
            raise PeftkitError(f"model: {name} is a file; {way} the folder that holds config.json and the weights.")
        return place
    if not hub.NAME.fullmatch(name):
        raise PeftkitError(
            f"model: there is no folder {name}, and no {SUFFIX} file. Name a folder with config.json and {WEIGHTS}, a "
            f"{SUFFIX} file, a Hugging Face id such as owner/name, or one of: {_known()}."
        )
    try:
        return fetch(name, revision, weights=weights, code=code, gguf=gguf)
    except hub.NotOnHubError as error:
        raise PeftkitError(f"{error} Or use one of: {_known()}.") from None


def _in_folder(folder: Path, gguf: str | None) -> Path:
    """Return a folder, or the GGUF file in it that is named, or that is the only form of the weights there."""
    held = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
    if gguf is not None:
        if not (folder / gguf).is_file():
            close = hint(gguf, held)
            raise PeftkitError(
                f"model.gguf: {folder} has no file {gguf}.{close} {SUFFIX} files there: {', '.join(held) or 'none'}."
            )
        return folder / gguf
    if not held or next(folder.glob("*.safetensors"), None):
        return folder
    if len(held) > 1:
        raise PeftkitError(f"model: {folder} holds {', '.join(held)}: name one of them with `model.gguf`.")
    return folder / held[0]


def _travelling() -> list[str]:
    return [name for name in NAMED.names() if name.startswith("bundled/")]


def _known() -> str:
    return ", ".join(NAMED.names())


def fetch(name: str, revision: str | None, *, weights: bool, code: bool, gguf: str | None = None) -> Path:
    """Return the local copy of the hub repository `name`, downloading what is wanted of its top folder.

    With `gguf` it is that of one file. Of weights it is the files that the index names, or else the one of all.
    """
    if gguf is not None:
        file = hub.snapshot(MODEL, name, revision, [gguf], nested=True) / gguf
        if not file.is_file():
            raise PeftkitError(f"model.gguf: {name} on the Hugging Face hub has no file {gguf}.")
        return file
    folder = hub.snapshot(MODEL, name, revision, DESCRIPTION_FILES + (["*.py"] if code else []))
    return _with_weights(folder, name) if weights else folder


def _with_weights(folder: Path, name: str) -> Path:
    """Fetch the weights that belong to the files in `folder`, the copy of one commit."""
    wanted = sorted(set(_placement(folder).values())) if (folder / INDEX).is_file() else [WEIGHTS]
    if all((folder / file).is_file() for file in wanted):
        return folder
    if not constants.HF_HUB_OFFLINE:
        held = hub.sizes(MODEL, name, folder.name)
        if not held.keys() & set(wanted):
            wanted = [WEIGHTS]
        if WEIGHTS not in held and wanted == [WEIGHTS]:
            raise PeftkitError(_unreadable(f"{name} on the Hugging Face hub", held))
        missing = [file for file in wanted if not (folder / file).is_file()]
        hub.check_room(MODEL, name, len(missing), sum(held.get(file, 0) for file in missing))
    hub.snapshot(MODEL, name, folder.name, wanted)
    return folder


def _placement(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor by the index of a folder; PeftkitError where one lies outside of the folder."""
    index = folder / INDEX
    placement = schemas.read(index, ShardIndex)["weight_map"]
    for name in sorted(set(placement.values())):
        if "\\" in name or PurePosixPath(name).name != name or name == ".." or not name.endswith(".safetensors"):
            raise PeftkitError(f"{index} points to '{name}': only .safetensors files in the same folder are read.")
    return placement


def description(folder: Path) -> dict[str, Any]:
    """Read the folder's config.json; refuses one without `model_type`."""
    path = folder / "config.json"
    if not path.is_file():
        raise PeftkitError(
            f"model: the folder {folder} has no config.json: it is not a model folder. Of one that holds {SUFFIX} "
            "files, name one with `model.gguf`."
        )
    return schemas.read(path, ModelDescription, what="does not describe a model by its 'model_type'")


def check_settings(folder: Path) -> None:
    """Refuse generation settings, where the folder has some, that are not what they should be."""
    if (folder / GENERATION).is_file():
        schemas.read(folder / GENERATION, GenerationSettings)


def shards(folder: Path) -> list[Path]:
    """List the folder's weight files after checking that each is there and inside the folder.

    Raises PeftkitError for pickled weights, a missing shard, and an index that points outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise PeftkitError(missing_weights(folder))
    placement = _placement(folder)
    names = sorted(set(placement.values()))
    for name in names:
        if not (folder / name).is_file():
            raise PeftkitError(
                f"{index} names {name}, and {folder} has no such file: a shard is missing. Copy it again."
            )
    held = {name: set(header(folder / name)) for name in names}
    absent = sorted(tensor for tensor, name in placement.items() if tensor not in held[name])
    if absent:
        raise PeftkitError(f"{index} says that {placement[absent[0]]} holds '{absent[0]}', and it does not.")
    return [folder / name for name in names]


def missing_weights(folder: Path) -> str:
    """Say why nothing in `folder` can be read as weights."""
    return _unreadable(f"the folder {folder}", [path.name for path in folder.iterdir()])


def _unreadable(place: str, names: Iterable[str]) -> str:
    pickles = sorted(name for name in names if "/" not in name and PurePosixPath(name).suffix in PICKLES)
    if pickles:
        return (
            f"model: {place} holds its weights as {pickles[0]} only. Such files can run code when opened and are not "
            "read. Where you trust it, transformers writes it anew with safetensors:\n"
            "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "  for kind in (AutoModelForCausalLM, AutoTokenizer):\n"
            "      kind.from_pretrained('THERE').save_pretrained('NEW')\n"
            "Then name the folder NEW as the model."
        )
    return f"model: {place} has neither {WEIGHTS} nor {INDEX}: there are no weights to read."


def header(path: Path) -> dict[str, tuple[str, int]]:
    """Return (dtype, number of values) of each tensor in a safetensors file, without reading the values."""
    file = TensorFile(path)
    return {name: (file.dtype(name), math.prod(file.shape(name))) for name in file.names}


def stored_dtype(paths: list[Path]) -> torch.dtype:
    """Return the floating dtype that most of the values in the weight files have; refuses files without one."""
    import torch

    counts: dict[str, int] = {}
    for path in paths:
        for dtype, size in header(path).values():
            counts[dtype] = counts.get(dtype, 0) + size
    if not counts:
        raise PeftkitError(f"{paths[0]} holds no tensors.")
    most = max(counts, key=lambda dtype: counts[dtype])
    if most not in DTYPES:
        raise PeftkitError(
            f"{paths[0].parent} keeps its weights as {most}; a base model needs {', '.join(DTYPES)}. "
            "Use the original, unquantized checkpoint."
        )
    return getattr(torch, DTYPES[most])
