"""Folders of Hugging Face peft: adapter_config.json with a `peft_type`, and adapter_model.safetensors."""

from __future__ import annotations

from pathlib import Path

from peftkit import schemas
from peftkit.export.hf_peft import CONFIGURATION, TENSORS, read
from peftkit.interchange.reader import READERS, FolderReader, ReadAdapter
from peftkit.layout import Layout
from peftkit.schemas import Stored


class Origin(Stored):
    """What the configuration says of the base model."""

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


class HuggingFacePeft(FolderReader):
    """What `save_pretrained` of that library writes."""

    library = "Hugging Face peft"
    configuration, tensors, pickled = CONFIGURATION, TENSORS, "adapter_model.bin"

    def claims(self, folder: Path) -> bool:
        path = folder / self.configuration
        return path.is_file() and schemas.read(path, Origin).get("peft_type") is not None

    def base(self, folder: Path) -> tuple[str | None, str | None]:
        origin = schemas.read(folder / self.configuration, Origin)
        return origin.get("base_model_name_or_path"), origin.get("revision")

    def read(self, folder: Path, layout: Layout) -> ReadAdapter:
        self.check_readable(folder)
        methods, tensors = read(folder, layout)
        return ReadAdapter(methods, tensors, in_front=True)


READERS.add("hf-peft", HuggingFacePeft())
