"""Merge a run's adapter into its base model's weights and write a folder that plain transformers opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from peftkit.errors import PeftkitError
from peftkit.export import shards
from peftkit.export.pruned import settle_zeros, zeroed
from peftkit.export.trained import CPU, Trained
from peftkit.families.image_text import unread
from peftkit.free_memory import free_memory
from peftkit.layout import own_parameters
from peftkit.models import folder as folders
from peftkit.models.contents import Contents, StoredTensor
from peftkit.models.doubled import doubled
from peftkit.models.quiet import quiet
from peftkit.models.samples import compare, logits
from peftkit.tensor_file import TensorFile

BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The difference of a logit allowed after merging, as a fraction of the largest: what rounding the weights may cost."""
WHAT = "the merged model"
ANEW = (torch.float32, torch.float64)
"""The dtypes of which the rounding of the arithmetic may be more than that of the weights."""
SHARD = "4GB"
CONFIGURATION = "config.json"


Opening = Callable[[], Trained]
"""Opens a run once more."""


def write_merged(
    trained: Trained, folder: Path, dtype: torch.dtype, again: Opening, *, keep_zeros: bool = False
) -> dict[str, Any]:
    """Merge, `write` and check; returns the report. With `keep_zeros` pruned weights are set to zero again.

    Raises PeftkitError where the method cannot merge, and where the logits differ beyond the bound for `dtype`.
    """
    expected = logits(trained.model, trained.tokenizer)
    trained.adaptation.merge_(keep_base=False)
    expected, zeros = settle_zeros(trained, expected, keep_zeros)
    write(trained, folder, dtype)
    model, again = reopen(trained, folder), zeroed(again) if keep_zeros else again
    return {**trained.report(), **checked(model, logits(model, trained.tokenizer), expected, dtype, again), **zeros}


def write(trained: Trained, folder: Path, dtype: torch.dtype, also: Collection[str] = ()) -> None:
    """Write a merged model's weights, configuration and tokenizer to `folder`; the model is of no use after it.

    Where the base lies in files of `dtype`, they are rewritten one by one: what the adapter changed, and the weights
    named in `also`, are cast once to the dtype they had, everything else stays as it was, bit for bit. Takes four bytes
    of memory a parameter and one file.
    """
    model, tokenizer, source = trained.model, trained.tokenizer, trained.source
    changed, untied = changed_tensors(trained, also)
    paths = folders.shards(source) if source is not None and trained.has_originals else []
    contents = _contents(trained, paths)
    with quiet():
        rewritable = paths and dtype == trained.original_dtype
        if not rewritable or not shards.rewrite(contents, changed, untied, paths, folder):
            _save(model.to(dtype), folder, contents.unread)  # type: ignore[arg-type]
        _save_settings(model, folder, dtype)
        tokenizer.save_pretrained(folder)
    if source is not None and (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    if source is not None and trained.recipe.model.trust_remote_code:
        for path in source.glob("*.py"):
            shutil.copyfile(path, folder / path.name)
    if source is not None and contents.unread:
        _copy_descriptions(source, folder, anew=untied is None)
    for parameter in model.parameters():
        # Two models of four bytes a parameter need not be in memory at once.
        parameter.data = parameter.data.new_empty(0)


def _contents(trained: Trained, paths: list[Path]) -> Contents:
    """Return what the base's files hold; refuses a base of which parts that text never reaches are nowhere."""
    contents = Contents(trained.module, map(TensorFile, paths))
    if unread(trained.module) and not contents.unread:
        raise PeftkitError(
            f"the base of this run, {trained.name}, holds the decoder of text alone of its model, which takes images "
            "too: the merged model would not be whole. Train on the original checkpoint."
        )
    return contents


def _copy_descriptions(source: Path, folder: Path, *, anew: bool) -> None:
    """Copy what a processor reads beside the tokenizer; with `anew` the configuration, too, is what it was."""
    described = {path.name: path for pattern in folders.DESCRIPTION_FILES for path in source.glob(pattern)}
    written = {folders.INDEX, *(path.name for path in folder.iterdir())} - ({CONFIGURATION} if anew else set())
    for name in set(described) - written:
        shutil.copyfile(described[name], folder / name)


def reopen(trained: Trained, folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Open what was written in plain transformers."""
    with quiet():
        return trained.family.loader.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trained.recipe.model.trust_remote_code,
        ).eval()


def checked(
    model: PreTrainedModel, merged: Tensor, expected: Tensor, dtype: torch.dtype, again: Opening
) -> dict[str, Any]:
    """Compare the logits of the merged model, reopened, with those it should have; PeftkitError beyond the bound.

    A model may make more of the rounding of fp32 than the bound allows: what is beyond it there is computed anew in
    fp64, at eight bytes a parameter, where the rounding of the weights alone is left, and has to be within it.
    """
    told = {"dtype": str(dtype).removeprefix("torch.")}
    try:
        return {**told, **compare(merged, expected, BOUNDS[dtype], WHAT)}
    except PeftkitError as error:
        needed = 8 * sum(parameter.numel() for parameter in model.parameters())
        if dtype not in ANEW or not merged.isfinite().all() or needed > free_memory(CPU):
            raise
        refused = error
    try:
        trained = again()
        with doubled(trained.module):
            expected = logits(trained.module, trained.tokenizer)
        with doubled(cast(nn.Module, model)):
            merged = logits(model, trained.tokenizer)
    except (RuntimeError, TypeError, ValueError):  # kernels of other libraries do not all compute in fp64
        raise refused from None
    return {**told, **compare(merged, expected, BOUNDS[dtype], f"{WHAT}, in fp64"), "compared_in": "float64"}


def changed_tensors(trained: Trained, also: Collection[str] = ()) -> tuple[dict[str, Tensor], str | None]:
    """Return the model's own tensors that merging changed, and those in `also`, by name; and the name of one untied."""
    own = dict(own_parameters(trained.model))
    # A tied weight is listed once, under its first name; merging unties a head that has an adapter.
    sites = [adapter.site for part in trained.adaptation.parts for adapter in part.adapters.values()]
    names = {f"{site.path}.{kind}" for site in sites for kind in ("weight", "bias")}
    names |= {site.id for site in sites if site.stack is not None}
    untied = next((f"{site.path}.weight" for site in sites if site.tied), None)
    names |= {name for part in trained.adaptation.parts for name in part.own} | set(also)
    # The files hold them as they were before they were pruned.
    names |= {f"{path}.weight" for path in trained.masks}
    return {name: tensor.detach() for name, tensor in own.items() if name in names}, untied


def _save_settings(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    # Whatever the model was computed in, readers take the dtype of the weights that lie beside it.
    cast(Any, model.config).dtype = dtype
    # The model's own generation settings may be invalid by today's rules and are copied as a file instead.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _save(model: PreTrainedModel, folder: Path, unread: Sequence[StoredTensor]) -> None:
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".seated." not in f".{name}"}
    tensors |= {place.key: place.read() for place in unread}
    try:
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=SHARD)
    except SafetensorError as error:
        raise PeftkitError(f"cannot write the merged weights to {folder.parent}: {error}. Is there space?") from None
