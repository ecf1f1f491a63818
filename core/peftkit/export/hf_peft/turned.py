"""Methods that turn inputs or outputs, as Hugging Face peft has them: angles, reflections, orthogonal blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import Config
from peftkit.export.hf_peft.plain import Shape, common, plain, ranked
from peftkit.layers.orthogonal import skew, upper
from peftkit.methods.boft import BOFT
from peftkit.methods.hra import HRA
from peftkit.methods.oft import OFT
from peftkit.methods.road import RoAd


def _angles_told(method: RoAd, adapters: Mapping[str, Any]) -> Config:
    groups = [method.group_at(adapter.site) for adapter in adapters.values()]
    return {"variant": f"road_{method.variant}", "group_size": common(groups, "groups")}


def _angles_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"variant": int(str(config.get("variant", "road_1"))[-1]), "group": config.get("group_size", 64)}


def _turns_told(method: OFT, adapters: Mapping[str, Any]) -> Config:
    blocks = common([adapter.block for adapter in adapters.values()], "blocks")
    series = {"use_cayley_neumann": method.terms is not None, "num_cayley_neumann_terms": method.terms or 5}
    return {"r": 0, "oft_block_size": blocks, "block_share": method.block_share, **series}


def _turns_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = [round((1 + (1 + 8 * tensor.shape[1]) ** 0.5) / 2) for tensor in state.values()]
    terms = config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else None
    return {"block": common(blocks, "blocks"), "block_share": bool(config.get("block_share")), "terms": terms}


def _butterfly_told(method: BOFT, adapters: Mapping[str, Any]) -> Config:
    if method.factors > 1 or method.terms is not None:
        raise PeftkitError(
            f"{method.name}: Hugging Face peft has one factor wherever its kernel for CUDA is not built, and the exact "
            "inverse: use --format merged for several factors or a series."
        )
    return {"boft_block_size": common([a.block for a in adapters.values()], "blocks"), "boft_block_num": 0}


def _butterfly_read(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    blocks = [tensor.shape[-1] for key, tensor in state.items() if key.endswith("/Q")]
    return {"block": common(blocks, "blocks")}


# The exact inverse has the other sign of Q there: (I - Q)(I + Q)^-1.
SIGNED = Shape(lambda m, t: t if m.terms else -t, lambda m, t: t if m.terms else -t)
SQUARE = Shape(
    lambda m, t: skew(-t, round((1 + (1 + 8 * t.shape[-1]) ** 0.5) / 2)), lambda m, t: -upper((t - t.mT) / 2)
)
COLUMN = Shape(lambda _, t: t[:, None], lambda _, t: t.flatten())

plain(RoAd, "ROAD", {"road_theta": "t", "road_alpha": "a"}, (_angles_told, _angles_read))
plain(HRA, "HRA", {"hra_u": "U"}, ranked(), needs=("r",), fixed={"apply_GS": False})
plain(
    OFT,
    "OFT",
    {"oft_R.weight": "Q"},
    (_turns_told, _turns_read),
    fixed={"coft": False, "module_dropout": 0.0},
    shapes={"Q": SIGNED},
)
plain(
    BOFT,
    "BOFT",
    {"boft_R": "Q", "boft_s": "s"},
    (_butterfly_told, _butterfly_read),
    fixed={"boft_n_butterfly_factor": 1, "boft_dropout": 0.0},
    shapes={"Q": SQUARE, "s": COLUMN},
)
