"""Export format `bitdelta`: what fine-tuning changed, in one bit a weight (Liu et al. 2024, arXiv:2402.10193)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from peftkit import __version__, files, schemas
from peftkit.errors import PeftkitError
from peftkit.export.distill import STEPS, Signs, distill
from peftkit.export.formats import FORMATS
from peftkit.export.pruned import check_whole
from peftkit.export.trained import Trained, open_base, open_run
from peftkit.layout import GROUPS, Layout, own_parameters
from peftkit.models.samples import compare, logits
from peftkit.quantization.bits import pack, unpack
from peftkit.quantization.weight import dense, hold, shape
from peftkit.schemas import Count, Stored, Text
from peftkit.tensor_file import read_tensors, write_tensors

FORMAT = 1
TENSORS, DESCRIPTION = "bitdelta.safetensors", "bitdelta.json"
BOUND = 1e-4
"""How far the reopened model may be from the written one, as a fraction of the largest logit: fp32 rounding."""


class DifferenceBase(Stored):
    """The model that a difference is to."""

    name: Text
    fingerprint: Text | None


class Difference(Stored):
    """What `bitdelta.json` says."""

    format: int
    base: DifferenceBase
    matrices: dict[str, Annotated[list[Count], Field(min_length=2, max_length=2)]]


@FORMATS.register("bitdelta")
def bitdelta(run: Path, output: Path) -> dict[str, Any]:
    """Write W_merged - W_base of every linear map in attention and MLP as its signs and one scale; `apply` reads it.

    sign(0) is +1, and a scale starts as the mean of |W_merged - W_base|, which is nearest in the sum of squares. Then
    the scales alone are trained to give the fine-tuned model's logits on the run's training data (`distill`). What else
    changed (embeddings, head, norms, biases) is written in full, in the dtype of the original weights. The base is that
    of the original weights, of a run on a quantized base too. Takes two models of four bytes a parameter, and a third
    while the scales are trained. The report has the largest difference to the fine-tuned model's logits on sample
    prompts before and after that training, its loss before and after, and the bytes of the linear maps beside those in
    bfloat16. Raises PeftkitError where the method cannot merge, and where nothing changed.
    """
    with files.new_folder(output) as folder:
        trained = open_run(run)
        check_whole(trained, "bitdelta")
        trained.adaptation.merge_(keep_base=False)
        tuned, words = trained.model, trained.tokenizer
        wanted = logits(tuned, words)
        base = open_base(trained.recipe)
        signs = _signs(tuned, base.model)
        full = _rest(tuned, base.model, trained.original_dtype, {f"{path}.weight" for path in signs})
        if not signs and not full:
            raise PeftkitError(f"{run}: fine-tuning changed nothing, so that there is no difference to write.")
        _put_full(base.model, full)
        distilled = distill(trained, base.model, signs, wanted)
        _write(folder, trained, signs, full, distilled.steps)
        fresh = open_base(trained.recipe)
        apply(fresh.model, folder, fresh.fingerprint)
        reopened = logits(fresh.model, words)
    compare(reopened, distilled.logits, BOUND, "the reopened model")
    return {
        "format": "bitdelta",
        "output": str(output),
        **trained.report(),
        "matrices": len(signs),
        "matrix_bytes": sum(-(-one.values.numel() // 8) + 4 for one in signs.values()),
        "matrix_bytes_in_bfloat16": sum(2 * one.values.numel() for one in signs.values()),
        "max_difference": float((reopened - wanted).abs().max()),
        "scale": float(wanted.abs().max()),
        **distilled.report(),
    }


def apply(model: nn.Module, folder: Path, fingerprint: str | None = None) -> None:
    """Add the difference in `folder` to `model`, its base in plain weights as transformers or peftkit loads it.

    The model may be saved or used like any other after it. `fingerprint` of a loaded base is compared where it is
    given. Raises PeftkitError for another base, and a missing, damaged or newer file; the model is then as before.
    """
    folder = Path(folder)
    description = _describe(folder)
    wanted = description["base"]["fingerprint"]
    if fingerprint is not None and wanted is not None and fingerprint != wanted:
        raise PeftkitError(
            f"the difference in {folder} is to another base model ({description['base']['name']}): name that one."
        )
    tensors = read_tensors(folder / TENSORS)
    bits = {path: tensors.pop(f"{path}.bits", None) for path in description["matrices"]}
    scales = {path: tensors.pop(f"{path}.scale", None) for path in description["matrices"]}
    _check_fit(model, folder, description["matrices"], bits, scales, tensors)
    for path, (rows, columns) in description["matrices"].items():
        module = model.get_submodule(path)
        values = unpack(cast(Tensor, bits[path]), 1, rows * columns).view(rows, columns).float() * 2 - 1
        hold(module, dense(module).detach().float() + cast(Tensor, scales[path]) * values, keep=False)
    _put_full(model, tensors)


def _signs(tuned: nn.Module, base: nn.Module) -> dict[str, Signs]:
    """Return the signs and the mean change of each linear map of the blocks that changed, by module path."""
    paths = dict.fromkeys(site.path for site in Layout(base).linears if site.role in GROUPS["linear"])
    signs = {}
    for path in paths:
        difference = (dense(tuned.get_submodule(path)) - dense(base.get_submodule(path))).detach()
        if bool(difference.any()):
            values = torch.where(difference < 0, -1.0, 1.0)
            signs[path] = Signs(values, nn.Parameter(difference.abs().mean()))
    return signs


def _rest(tuned: nn.Module, base: nn.Module, dtype: torch.dtype, without: set[str]) -> dict[str, Tensor]:
    """Return the other tensors that changed, by name, in `dtype`; a weight that was tied and is no longer counts."""
    before = dict(own_parameters(base))
    return {
        name: value.detach().to(dtype)
        for name, value in own_parameters(tuned)
        if name not in without and (name not in before or not torch.equal(value, before[name]))
    }


def _put_full(model: nn.Module, full: Mapping[str, Tensor]) -> None:
    """Put whole tensors in the place of the model's own; a head that gets its own weight is no longer tied."""
    own = dict(own_parameters(model))
    for name, value in full.items():
        path, _, kind = name.rpartition(".")
        module = model.get_submodule(path)
        if name in own:
            with torch.no_grad():
                own[name].copy_(value)
            continue
        near = next(model.parameters())
        if kind == "weight":
            cast(Any, model).config.tie_word_embeddings = False
        setattr(module, kind, nn.Parameter(value.to(near), requires_grad=False))


def _write(folder: Path, trained: Trained, signs: Mapping[str, Signs], full: Mapping[str, Tensor], steps: int) -> None:
    tensors = dict(full)
    for path, one in signs.items():
        tensors[f"{path}.bits"] = pack((one.values > 0).to(torch.uint8).flatten(), 1)
        tensors[f"{path}.scale"] = one.scale.detach()
    write_tensors(folder / TENSORS, tensors)
    description = {
        "format": FORMAT,
        "peftkit": __version__,
        "base": {"name": trained.name, "fingerprint": trained.fingerprint},
        "methods": [method.name for method in trained.adaptation.described],
        "matrices": {path: list(one.values.shape) for path, one in signs.items()},
        "full": sorted(full),
        "distilled": {"steps": STEPS if steps else 0},
    }
    files.write_json(folder / DESCRIPTION, description)


def _describe(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise PeftkitError(f"{folder} holds no one-bit difference: there is no {DESCRIPTION} in it.")
    description = schemas.read(path, Difference, what="does not describe a difference")
    if description["format"] != FORMAT:
        raise PeftkitError(
            f"{path} has the format {description['format']!r}, and this version of peftkit reads {FORMAT}: upgrade it."
        )
    return {**description, "matrices": {path: tuple(sizes) for path, sizes in description["matrices"].items()}}


def _check_fit(
    model: nn.Module,
    folder: Path,
    matrices: Mapping[str, tuple[int, int]],
    bits: Mapping[str, Tensor | None],
    scales: Mapping[str, Tensor | None],
    full: Mapping[str, Tensor],
) -> None:
    """Raise PeftkitError where the tensors are not those that are described, or do not fit the model."""
    modules = dict(model.named_modules())
    for path, sizes in matrices.items():
        one, scale = bits[path], scales[path]
        if one is None or scale is None or scale.numel() != 1 or one.numel() != -(-sizes[0] * sizes[1] // 8):
            raise PeftkitError(f"{folder / TENSORS}: the signs or the scale of {path} are missing or of a wrong size.")
        if shape(modules.get(path)) != sizes:
            raise PeftkitError(f"{folder} changes a weight {path} {list(sizes)}, and the model has none: another base.")
    for name, value in full.items():
        path, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias") or path not in modules or not _fits(modules[path], kind, value):
            raise PeftkitError(
                f"{folder} holds {name} {list(value.shape)}, which does not fit the model: another base."
            )


def _fits(module: nn.Module, kind: str, value: Tensor) -> bool:
    own, sizes = getattr(module, kind, None), shape(module)
    if own is None:
        # A linear map without a bias may get one.
        return kind == "bias" and sizes is not None and tuple(value.shape) == sizes[:1]
    return own.shape == value.shape
