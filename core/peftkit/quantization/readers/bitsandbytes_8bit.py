"""8-bit layers of bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339), rows scaled by their largest magnitude.

The library's own product rounds the input to 8 bits as well; here it stays as it is, so that the layer is one matrix.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftkit.quantization.foreign import READERS, Reader, named


def weight(layer: Any) -> Tensor:
    """Return W [out, in] in fp32."""
    # The library moves the scales of the rows from the weight to the state in its first forward pass.
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    return layer.weight.data.float() * (scales.float() / 127).unsqueeze(1)


def knows(module: Any) -> bool:
    """Say whether the module is such a layer."""
    return named(module, "Linear8bitLt", "bitsandbytes")


READERS.add("bitsandbytes-8bit", Reader("bitsandbytes", ("bitsandbytes", "accelerate"), knows, weight))
