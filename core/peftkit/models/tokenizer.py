"""A model's tokenizer, with the end-of-sequence and padding tokens that training and generation need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from peftkit import schemas
from peftkit.errors import PeftkitError
from peftkit.models import folder as folders
from peftkit.models import gguf_folder
from peftkit.models.configuration import one_line
from peftkit.models.quiet import quiet
from peftkit.recipe import ModelSection
from peftkit.schemas import Stored

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
PROCESSOR_FILES = ("chat_template.json", "processor_config.json")
"""Where a chat template stands that the tokenizer's own files lack."""
PADDING = ("<pad>", "<|pad|>", "[PAD]", "<PAD>", "<|padding|>", "<|finetune_right_pad_id|>", "<|vision_pad|>")


class SpecialToken(Stored):
    """A special token that is described."""

    content: str


class TokenizerSettings(Stored):
    """What is taken of tokenizer_config.json and special_tokens_map.json."""

    model_max_length: int | float | None = None
    tokenizer_class: str | None = None
    chat_template: str | list[dict[str, str]] | dict[str, str] | None = None
    bos_token: str | SpecialToken | None = None
    eos_token: str | SpecialToken | None = None
    pad_token: str | SpecialToken | None = None
    unk_token: str | SpecialToken | None = None
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    padding_side: str | None = None
    added_tokens_decoder: dict[str, SpecialToken] | None = None


class ProcessorSettings(Stored):
    """What is taken of the files of a processor."""

    chat_template: str | None = None


SETTINGS = {
    "tokenizer.json": dict,
    "tokenizer_config.json": TokenizerSettings,
    "special_tokens_map.json": TokenizerSettings,
}
"""The schema of each of the tokenizer's files."""


def read(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Read the tokenizer in `folder`, or in a GGUF file, fast where there is one; the padding token is always set.

    Raises PeftkitError where there is none, where its files are damaged, and without an end-of-sequence token.
    """
    if folder.is_file():
        return read(gguf_folder.open_file(folder).with_tokenizer())
    if not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES):
        raise PeftkitError(
            f"model: {folder} has no tokenizer ({', '.join(VOCABULARIES)}): name one with `model.tokenizer`."
        )
    for name, schema in SETTINGS.items():
        if (folder / name).is_file():
            schemas.read(folder / name, schema, what="does not describe a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, use_fast=True, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise PeftkitError(f"model: the tokenizer in {folder} cannot be read: {one_line(error)}") from error
    for key in ("local_files_only", "is_local"):  # would be written into the tokenizer's own file
        tokenizer.init_kwargs.pop(key, None)
    if not len(tokenizer):
        raise PeftkitError(f"model: the tokenizer in {folder} has an empty vocabulary.")
    if tokenizer.eos_token_id is None:
        raise PeftkitError(
            f"model: the tokenizer in {folder} has no end-of-sequence token: set `eos_token` in tokenizer_config.json."
        )
    tokenizer.chat_template = tokenizer.chat_template or _template_of_processor(folder)
    set_padding(tokenizer)
    return tokenizer


def _template_of_processor(folder: Path) -> str | None:
    """Return the chat template in the files of the folder's processor, of images and text, or None."""
    contents = [schemas.read(folder / name, ProcessorSettings) for name in PROCESSOR_FILES if (folder / name).is_file()]
    return next((content["chat_template"] for content in contents if content.get("chat_template") is not None), None)


def load_tokenizer(section: ModelSection) -> Any:
    """Load the section's tokenizer: the one it names, else the model's own; the padding token is always set."""
    name = section.tokenizer or section.name
    if name is None:
        raise PeftkitError(
            "model.init describes a model without a tokenizer: name one with `model.tokenizer`, such as bundled/tiny "
            "or a folder with tokenizer.json."
        )
    revision = None if section.tokenizer else section.revision
    with quiet():
        folder = folders.find(name, revision, weights=False, code=section.trust_remote_code)
        return read(folder, trust_remote_code=section.trust_remote_code)


def set_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give `tokenizer` a padding token: its own, else one that its vocabulary has for it, else end-of-sequence."""
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((token for token in PADDING if token in vocabulary), tokenizer.eos_token)
    tokenizer.padding_side = "right"


def check_size(tokenizer: Any, rows: int, where: str) -> None:
    """Refuse a tokenizer with ids beyond the `rows` of the token embedding."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise PeftkitError(
            f"{where}: the tokenizer has ids up to {largest}, and the model's token embedding only {rows} rows. "
            "Name the tokenizer that belongs to the model."
        )
