"""Export format `merged`: one ordinary model folder, for plain transformers and everything that reads its files."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError, unknown
from peftkit.export.formats import FORMATS
from peftkit.export.model_folder import checked, reopen, write, write_merged
from peftkit.export.packed_base import AsTrained, dequantize, write_shifted
from peftkit.export.pruned import check_pruned, settle_zeros, zeroed
from peftkit.export.trained import Trained, open_run
from peftkit.models.quantize import Quantization
from peftkit.models.samples import logits
from peftkit.quantization.storage import is_foreign

INTO = ("original", "dequantized")
"""Which weights the adapter of a run on a quantized base is added to."""
BOUND = 0.3
"""The difference of a logit, as a fraction of the largest, up to which packing the merged weights again is done.

On the bundled model it is 0.02 in int8, 0.22 in nf4 (the validation loss rises from 0.595 to 0.613), 0.44 in nf3 (from
0.90 to 0.96) and 0.86 in nf2 (from 0.57 to 1.73).
"""
MEANINGS = {
    "original": "the difference to the trained model is what rounding its base had lost: it is reported, not bounded",
    "dequantized": "the merged model is the trained one, in the dtype of the original weights",
}


@FORMATS.register("merged")
def merged(run: Path, output: Path) -> dict[str, Any]:
    """Write the base model with the run's adapter merged in, in the original weights' dtype."""
    return merge(Path(run), Path(output))


def merge(
    run: Path,
    output: Path,
    *,
    into: str = INTO[0],
    requantize: bool = False,
    bound: float | None = None,
    keep_zeros: bool = False,
) -> dict[str, Any]:
    """Merge the run's adapter into its base model's weights and write a model folder; see `export`.

    A run on a quantized base is merged `into` the original weights, or into the dequantized ones, which are what its
    adapter was trained on. The report of such a run adds the largest and the mean difference of the logits to those of
    the model as it was trained (`trained_max_difference`, `trained_mean_difference`; `meaning` says what the first is),
    and the same once the merged weights are packed again in the formats of the base (`requantized_...`). With
    `requantize` these packed weights are what is written, where the largest difference is within `bound` (0.3) of the
    largest logit (`requantized_bound`). Of a run on a pruned base it tells how many zeros the adapter has filled
    (`pruned_weights`, `filled_weights`); with `keep_zeros` they are set to zero again, and it tells what that changes
    of the logits (`zeroed_weights`, `zeroed_max_difference`). Raises PeftkitError beyond the bound, and for choices
    that have no meaning for the run's base.
    """
    _check(into, requantize, bound)
    with files.new_folder(output) as folder:
        trained = open_run(run, packed=True)
        check_pruned(trained, keep_zeros)
        shifted = requantize and all(method.needs is not None for method in trained.adaptation.methods)
        if not shifted:
            trained.check_mergeable()
        if shifted:
            report = {**trained.report(), **write_shifted(trained, folder)}
            into = INTO[1]
        elif is_foreign(trained.storage):
            _check_foreign(trained, requantize)
            report = _write_on_packed(run, trained, folder, into, None)
        elif Quantization.described(trained.storage).packs:
            limit = None if not requantize else BOUND if bound is None else bound
            report = _write_on_packed(run, trained, folder, into, limit, keep_zeros)
        else:
            _refuse(into, requantize)
            again = partial(open_run, run, packed=True)
            report = write_merged(trained, folder, trained.original_dtype, again, keep_zeros=keep_zeros)
    return {"format": "merged", "output": str(output), "into": into, **report}


def _check(into: str, requantize: bool, bound: float | None) -> None:
    if into not in INTO:
        raise PeftkitError(f"--into: {unknown('choice of weights', into, INTO)}")
    if bound is not None and not requantize:
        raise PeftkitError("--bound is what --requantize keeps to: give both, or neither.")
    if bound is not None and not 0 < bound < float("inf"):
        raise PeftkitError(f"--bound: found {bound}; allowed: a number above 0, a fraction of the largest logit.")


def _refuse(into: str, requantize: bool) -> None:
    """Refuse what has no meaning for a run on original weights."""
    option = "--requantize" if requantize else f"--into {into}"
    if requantize or into != INTO[0]:
        raise PeftkitError(
            f"{option} is for a run on a quantized base, and this run was trained on the original weights "
            "(quantization none in its recipe): leave it out."
        )


def _check_foreign(trained: Trained, requantize: bool) -> None:
    if requantize:
        raise PeftkitError(
            f"--requantize: the base {trained.name} is stored as {trained.storage['format']}, which peftkit "
            "reads and does not write: merge with --into dequantized, then pack the result with `peft quantize`."
        )


def _write_on_packed(
    run: Path, trained: Trained, folder: Path, into: str, bound: float | None, keep_zeros: bool = False
) -> dict[str, Any]:
    """Write the merged model of a run on a packed base, as plain weights or, within `bound`, packed again."""
    as_trained = AsTrained.of(trained)
    expected = as_trained.logits
    if into == INTO[0]:
        trained = _on_originals(run, trained)
        expected = logits(trained.model, trained.tokenizer)
    trained.adaptation.merge_(keep_base=False)
    plain = folder if bound is None else folder / "plain"
    plain.mkdir(exist_ok=True)
    also = dequantize(trained)
    expected, zeros = settle_zeros(trained, expected, keep_zeros)
    write(trained, plain, trained.original_dtype, also)
    model, words = reopen(trained, plain), trained.tokenizer
    merged_logits = logits(model, words)
    again = partial(open_run, run, packed=into != INTO[0])
    again = zeroed(again, dequantize) if keep_zeros else again
    report = {**trained.report(), **zeros, **checked(model, merged_logits, expected, trained.original_dtype, again)}
    report |= as_trained.differences(merged_logits, "trained")
    report["meaning"] = MEANINGS[into]
    if as_trained.quantization is None:
        return report
    as_trained.pack(model)
    packed_logits = logits(model, words)
    report |= as_trained.differences(packed_logits, "requantized")
    if bound is not None:
        scale = float(as_trained.logits.abs().max())
        _refuse_beyond(report["requantized_max_difference"], bound, scale)
        report["requantized_bound"] = bound * scale
        as_trained.write(trained, plain, folder, packed_logits)
        shutil.rmtree(plain)
    return report


def _on_originals(run: Path, trained: Trained) -> Trained:
    """Open the run on its original weights."""
    needing = next((method for method in trained.adaptation.methods if method.needs is not None), None)
    if needing is not None:
        raise PeftkitError(
            f"the method '{needing.name}' changes weights stored as {needing.needs} and has no meaning on the original "
            "ones: merge with --into dequantized."
        )
    if not trained.has_originals:
        raise PeftkitError(
            f"the base of this run, {trained.name}, holds packed weights alone, and the original ones that "
            "--into original needs are not there: merge with --into dequantized."
        )
    return open_run(run)


def _refuse_beyond(difference: float, bound: float, scale: float) -> None:
    if not difference <= bound * scale:
        raise PeftkitError(
            f"--requantize: packed again, the merged model's logits differ from the trained model's by up to "
            f"{difference:.3g} on sample prompts ({difference / scale:.3g} of the largest logit), and {bound:g} of it "
            "is allowed: nothing was written. Merge without --requantize, or allow more with --bound."
        )
