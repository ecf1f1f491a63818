"""Export format `hf-peft`: an adapter folder of Hugging Face peft, written and read without that library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from peftkit import files, schemas, tensor_file
from peftkit.adaptation import Adaptation, attach
from peftkit.data.encode import opening
from peftkit.errors import PeftkitError
from peftkit.export.formats import FORMATS
from peftkit.export.hf_peft import own
from peftkit.export.hf_peft.converter import ALONE, CONVERTERS, HubConfig, Tensors, convert
from peftkit.export.hf_peft.options import check_options
from peftkit.export.hf_peft.own import Owned
from peftkit.export.pruned import check_whole
from peftkit.export.trained import Trained, open_base, open_run
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.models.samples import compare, logits

CONFIGURATION = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
BOUND = 1e-5


@FORMATS.register("hf-peft")
def hf_peft(run: Path, output: Path) -> dict[str, Any]:
    """Write the run's adapter so that `peft.PeftModel.from_pretrained(base, output)` gives the same logits.

    Raises PeftkitError for a run of several methods, and for an adapter that would compute something else there.
    """
    with files.new_folder(output) as folder:
        trained = open_run(run)
        check_whole(trained, "hf-peft")
        write(trained, folder)
        expected = logits(trained.model, trained.tokenizer, trained.adaptation.soft_ids)
        base = open_base(trained.recipe)
        soft = load(folder, base.model).soft_ids
        comparison = compare(logits(base.model, base.tokenizer, soft), expected, BOUND, "the exported adapter")
    return {"format": "hf-peft", "output": str(output), **trained.report(), **comparison}


def write(trained: Trained, folder: Path) -> None:
    """Write the configuration and the tensors that the method's converter gives."""
    every = [part for part in trained.adaptation.parts if part.lasts]
    whole, parts = [part for part in every if own.is_part(part)], [part for part in every if not own.is_part(part)]
    if len(parts) != 1 or len(whole) > 1:
        parts = every
    if len(parts) > 1:
        names = ", ".join(part.method.name for part in parts)
        raise PeftkitError(
            f"this run combines several methods ({names}), and a Hugging Face peft folder holds one: export with "
            "--format merged instead."
        )
    if trained.recipe.model.rope_factor > 1:
        raise PeftkitError(
            "this run's model has scaled positions (model.rope_factor), of which a Hugging Face peft folder cannot "
            "tell: export with --format merged instead."
        )
    first = opening(trained.tokenizer) if trained.adaptation.soft_ids else []
    if first:
        raise PeftkitError(
            f"this model's tokenizer begins texts with '{trained.tokenizer.decode(first)}': a soft prompt stands "
            f"behind that token here and in front of it in Hugging Face peft, which gives other logits: {ALONE}."
        )
    config, tensors = convert(parts[0].method, parts[0].adapters, trained.model)
    for part in whole if parts is not every else ():
        saved, values = own.told(part, trained.layout)
        config, tensors = {**config, **saved}, {**tensors, **values}
    source = trained.source
    is_hub_name = source is not None and not trained.name.startswith("bundled/") and not Path(trained.name).is_dir()
    place = trained.name if is_hub_name else None if source is None else str(source.resolve())
    origin = {"base_model_name_or_path": place, "revision": trained.recipe.model.revision}
    files.write_json(folder / CONFIGURATION, {**origin, **config})
    tensor_file.write_tensors(folder / TENSORS, tensors)


def load(folder: Path, model: nn.Module, name: str = "default") -> Adaptation:
    """Attach to `model` the adapter of a Hugging Face peft folder; the method is the one named as its `peft_type`.

    Raises PeftkitError for a missing or damaged file, an unknown type, and options that the method does not read.
    """
    methods, state = read(folder, Layout(model))
    try:
        adaptation = attach(model, methods, name, loading=True)
    except PeftkitError as error:
        raise PeftkitError(f"{folder}: {error}") from None
    try:
        adaptation.load_state(state)
    except PeftkitError as error:
        adaptation.remove()
        raise PeftkitError(f"{folder / TENSORS}: {error}") from None
    return adaptation


def read(folder: Path, layout: Layout) -> tuple[list[Method], Tensors]:
    """Return the methods of a Hugging Face peft folder and their state, keys `<position>/<site>/<tensor>`.

    Raises PeftkitError as `load` does.
    """
    path = folder / CONFIGURATION
    if not path.is_file():
        raise PeftkitError(f"{folder} is no adapter folder of Hugging Face peft: there is no {CONFIGURATION} in it.")
    config = schemas.read(path, HubConfig)
    kind = config.get("peft_type")
    readers = [converter for _, converter in CONVERTERS.items() if converter.reads(config)]
    if not readers:
        able = ", ".join(CONVERTERS.names())
        raise PeftkitError(f"{path}: peft_type is {kind!r}; it can be read for the methods {able}.")
    lacking = next((key for key in readers[0].needs if config.get(key) is None), None)
    if lacking is not None:
        raise PeftkitError(f"{path}: {lacking} is missing, which an adapter of the type {kind} has.")
    if "r" in readers[0].needs and config["r"] == 0:
        raise PeftkitError(f"{path}: r: found 0 (a whole number); allowed: greater than or equal to 1.")
    try:
        check_options(config)
    except PeftkitError as error:
        raise PeftkitError(f"{folder}: {error}") from None
    tensors = tensor_file.read_tensors(folder / TENSORS)
    try:
        owned = Owned(config, tensors, layout)
        read = [*readers[0].read_all(config, owned.left, layout), *owned.methods()]
    except PeftkitError as error:
        raise PeftkitError(f"{folder}: {error}") from None
    state = {f"{place}/{key}": tensor for place, (_, own) in enumerate(read) for key, tensor in own.items()}
    return [method for method, _ in read], state
