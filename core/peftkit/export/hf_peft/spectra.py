"""Methods of transforms as Hugging Face peft has them: Fourier and wavelet coefficients, circulant blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peftkit.export.hf_peft.converter import Config
from peftkit.export.hf_peft.plain import common, number, plain
from peftkit.methods.c3a import C3A
from peftkit.methods.fourierft import FourierFT
from peftkit.methods.waveft import WaveFT


def _spectrum_told(method: FourierFT, adapters: Mapping[str, Any]) -> Config:
    counts = [len(adapter.c) for adapter in adapters.values()]
    return {"n_frequency": common(counts, "counts"), "scaling": method.scale, "random_loc_seed": method.seed}


def _spectrum_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    count = common([len(tensor) for tensor in state.values()], "counts")
    scale = float(number(config, "scaling", 150.0))
    return {"count": count, "scale": scale, "seed": config.get("random_loc_seed", 777)}


def _wavelets_told(method: WaveFT, adapters: Mapping[str, Any]) -> Config:
    return {**_spectrum_told(method, adapters), "use_idwt": method.wavelet == "haar"}


def _wavelets_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    wavelet = "haar" if config.get("use_idwt", True) else "none"
    return {**_spectrum_read({"scaling": 25.0, **config}, state), "wavelet": wavelet}


def _circular_told(method: C3A, adapters: Mapping[str, Any]) -> Config:
    sizes = [adapter.w.shape[-1] for adapter in adapters.values()]
    return {"block_size": common(sizes, "blocks")}


def _circular_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"block": common([tensor.shape[-1] for tensor in state.values()], "blocks")}


plain(FourierFT, "FOURIERFT", {"fourierft_spectrum": "c"}, (_spectrum_told, _spectrum_read))
plain(
    WaveFT,
    "WAVEFT",
    {"waveft_spectrum": "c"},
    (_wavelets_told, _wavelets_read),
    fixed={"wavelet_family": "db1", "proportional_parameters": False},
)
plain(C3A, "C3A", {"c3a_kernel": "w"}, (_circular_told, _circular_read))
