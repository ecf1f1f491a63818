"""What a GGUF file says of its model as a folder of transformers: config.json and the tokenizer, kept once made."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from peftkit import families, files, schemas
from peftkit.errors import PeftkitError, hint
from peftkit.models import configuration, packed_cache
from peftkit.models.gguf_file import Header, TensorPlace, read_header
from peftkit.schemas import Count, Text

VERSION = 1
HEADER = "tensors.json"
PLACE = Annotated[tuple[Count, list[Count], Count, Count], Field(strict=False)]
KEPT = Annotated[tuple[Text, bool, dict[str, PLACE]], Field(strict=False)]
"""What is kept of a header: the architecture, whether there is a tokenizer, and `TensorPlace` of each tensor."""
ADVICE = "pip install 'peftkit[gguf]'"


@dataclass(frozen=True)
class GgufFolder:
    """A GGUF file with what was read from it."""

    path: Path
    folder: Path
    """With config.json, and the tokenizer where the file has one."""
    header: Header
    temporary: tempfile.TemporaryDirectory[str] | None = None
    """The folder, where it could not be kept; it is there as long as this is."""

    def with_tokenizer(self) -> Path:
        """Return the folder; refuses a file without a tokenizer."""
        if not self.header.has_tokenizer:
            raise PeftkitError(
                f"model: {self.path} holds no tokenizer (tokenizer.ggml.tokens): name one with `model.tokenizer`."
            )
        return self.folder


def open_file(path: Path) -> GgufFolder:
    """Open a GGUF file, from what an earlier start kept of it where there is that.

    Reading its vocabulary takes transformers 20 s for 49,000 tokens and a minute for 262,000, on one core; the folder
    is kept beside packed models (`PEFTKIT_CACHE`), under a name that follows from the file's place, size and time and
    from the libraries. Raises PeftkitError for a file that is damaged, of an architecture that transformers cannot open
    or no family takes, and without the package gguf.
    """
    if importlib.util.find_spec("gguf") is None:
        raise PeftkitError(f"model: {path} is a GGUF file, and reading it needs the package gguf: {ADVICE}.")
    with files.explained("read", path):
        stat = path.stat()
    libraries = [metadata.version(name) for name in ("transformers", "tokenizers", "gguf")]
    facts = [VERSION, str(path.resolve()), stat.st_size, stat.st_mtime_ns, *libraries]
    where = files.cache_folder() / "opened" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    header = _kept(where)
    if header is not None:
        return GgufFolder(path, where, header)
    header = read_header(path)
    level = logging.INFO if stat.st_size < packed_cache.SMALLEST else logging.WARNING
    logging.getLogger("peftkit").log(level, "reading the description and the vocabulary of %s, once: a minute", path)
    # Made before it is kept: a disk that cannot take it is no reason to stop, and a fault of the file is.
    temporary = tempfile.TemporaryDirectory(prefix="peftkit-")
    _write(path, header, Path(temporary.name))
    try:
        with files.new_folder(where, replace=True) as folder:
            for item in Path(temporary.name).iterdir():
                files.write_bytes(folder / item.name, item.read_bytes())
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("what %s says is not kept for the next start: %s", path, error)
        return GgufFolder(path, Path(temporary.name), header, temporary)
    return GgufFolder(path, where, header)


def _kept(where: Path) -> Header | None:
    """Read what an earlier start kept; None where there is nothing, or it is damaged and has to be made again."""
    if not (where / HEADER).is_file() or not (where / "config.json").is_file():
        return None
    try:
        architecture, has_tokenizer, places = schemas.read(where / HEADER, KEPT)
        files.read_json(where / "config.json")
    except PeftkitError as error:
        logging.getLogger("peftkit").warning("%s It is made again.", error)
        return None
    held = {name: TensorPlace(kind, tuple(shape), offset, size) for name, (kind, shape, offset, size) in places.items()}
    return Header(architecture, has_tokenizer, held)


def _write(path: Path, header: Header, folder: Path) -> None:
    """Write the configuration, the tokenizer and the header of a file to `folder`."""
    config = _config(path, header)
    config.save_pretrained(folder)
    if header.has_tokenizer:
        try:
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
        except Exception as error:  # each kind of tokenizer fails in its own way
            reason = configuration.one_line(error)
            raise PeftkitError(f"model: the tokenizer in {path} cannot be read: {reason}") from None
        if tokenizer.eos_token_id is None:
            raise PeftkitError(f"model: {path} names no end-of-sequence token (tokenizer.ggml.eos_token_id).")
        tokenizer.save_pretrained(folder)
    places = {name: list(place) for name, place in header.places.items()}
    files.write_json(folder / HEADER, [header.architecture, header.has_tokenizer, places])


def _config(path: Path, header: Header) -> PretrainedConfig:
    """Return the file's configuration, as that of a model whose weights were never in a GGUF file."""
    able = _architectures()
    if header.architecture not in able:
        raise PeftkitError(
            f"model: {path} is of the architecture '{header.architecture}', which transformers cannot open from GGUF."
            f"{hint(header.architecture, able)} It opens {', '.join(able)}."
        )
    try:
        config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except Exception as error:  # a key that is missing or odd fails in every way
        reason = configuration.one_line(error)
        raise PeftkitError(f"model: {path} does not describe a {header.architecture}: {reason}") from None
    families.check(config, str(path))
    embedding = header.places.get("token_embd.weight")
    if not header.has_tokenizer and embedding is not None:
        # transformers counts the vocabulary by the tokenizer's tokens.
        config.vocab_size = embedding.shape[0]
    config.name_or_path = ""
    config.dtype = header.dtype
    config.architectures = [families.family_of(config).loader._model_mapping[type(config)].__name__]
    return config


def _architectures() -> list[str]:
    """List what transformers opens from GGUF, by the names that it has there."""
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return sorted({*GGUF_CONFIG_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES})
