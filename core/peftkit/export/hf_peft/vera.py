"""VeRA: trained vectors and the shared matrices as Hugging Face peft has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import CONVERTERS, PREFIX, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.vera import Vectors, VeRA

NAMES = ("vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d")


class VectorsConverter(Converter):
    """The shared matrices always travel: that library's generator draws others from the same seed."""

    def write(self, method: VeRA, adapters: Mapping[str, Vectors], model: nn.Module) -> tuple[Config, Tensors]:
        part = next((adapter.site.id for adapter in adapters.values() if adapter.site.rows is not None), None)
        if part is not None:
            raise PeftkitError(
                f"{method.name}: Hugging Face peft takes whole modules, not {part}: use --format merged."
            )
        config = self.config(
            r=method.rank,
            projection_prng_key=method.projection_seed,
            save_projection=True,
            vera_dropout=method.dropout,
            target_modules=sorted(adapters),
        )
        shared = next(iter(adapters.values())).shared
        tensors = {"base_model.vera_A": shared.A, "base_model.vera_B": shared.B}
        for path, adapter in adapters.items():
            tensors |= {f"{PREFIX}{path}.vera_lambda_{key}": getattr(adapter, key).detach() for key in "bd"}
        return config, tensors

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state = {}
        for key, tensor in tensors.items():
            path, _, name = key.removeprefix(PREFIX).removeprefix("base_model.").rpartition(".")
            if name not in NAMES:
                raise PeftkitError(f"adapter_model.safetensors: the tensor '{key}' is not part of a VeRA adapter.")
            state[f"{path or 'shared'}/{name[-1]}"] = tensor.float()
        method = self.method(
            rank=config["r"],
            projection_seed=config.get("projection_prng_key") or 0,
            save_projection="shared/A" in state,
            dropout=float(config.get("vera_dropout") or 0),
            targets=tuple(sorted({key.rpartition("/")[0] for key in state} - {"shared"})),
        )
        return method, state


CONVERTERS.add("vera", VectorsConverter(VeRA, "VERA"))
