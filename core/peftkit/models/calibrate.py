"""Packing the weights of a model for what their inputs are on examples."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

from torch import Tensor, nn

from peftkit.layout import Layout
from peftkit.models.layerwise import release_memory
from peftkit.models.quantize import Quantization, itself, replace, replace_stack
from peftkit.models.walk import Walk, observe
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.stack import matrix
from peftkit.quantization.weight import dense


def calibrate(model: nn.Module, quantization: Quantization, rows: Sequence[Tensor]) -> None:
    """Pack the layers whose formats are calibrated, which are dense yet, on examples `rows`, ids [1, T] each.

    Layer by layer of the model: the inputs of its maps are those that the packed layers before it give, and its own
    maps are packed together. Each keeps its dense weight until `forget_originals`. Experts in stacks, and maps that no
    example reaches, are rounded to nearest, which the log tells. Raises PeftkitError for a weight that cannot be
    packed, and for inputs that are not finite.
    """
    layout = Layout(model)
    stacks = {site.id: site for site in layout.stacks}
    chosen = {path: one for path, one in quantization.choose(layout).items() if one.calibrated}
    places = {path: layout.layer_of(path) for path in chosen if path not in stacks}
    unseen = [path for path in chosen if path in stacks]
    for layer, run in Walk(model, rows).layers():
        paths = [path for path, place in places.items() if place == layer]
        unseen += _pack(model, {path: chosen[path] for path in paths}, observe(model, paths, run)) if paths else []
    for path in unseen:
        if path in stacks:
            site = stacks[path]
            stack = cast(Tensor, site.held).detach()
            readers = [partial(matrix, stack, index, site.transposed) for index in range(len(stack))]
            replace_stack(site, chosen[path], readers)
    if unseen:
        names = ", ".join(unseen[:3]) + (f" and {len(unseen) - 3} more" if len(unseen) > 3 else "")
        logging.getLogger("peftkit").warning("rounded to nearest, as no input was seen: %s", names)


def _pack(model: nn.Module, chosen: Mapping[str, Quantizer], seen: Mapping[str, Inputs]) -> list[str]:
    """Pack the maps of one layer; returns those that no token reached."""
    for path, quantizer in chosen.items():
        weight = dense(model.get_submodule(path)).detach()
        replace(model, path, quantizer, partial(itself, weight), seen[path])
        release_memory()
    return [path for path in chosen if not seen[path].count]
