"""Methods of whole modules as Hugging Face peft has them: scales, vectors, Kronecker factors, norms, gated prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import ALONE, CONVERTERS, Config, Converter, Tensors
from peftkit.layout import Layout
from peftkit.method import Method
from peftkit.methods.ia3 import IA3, Scale
from peftkit.methods.krona import KronA, Kronecker
from peftkit.methods.layernorm_tuning import LayerNormTuning
from peftkit.methods.llama_adapter import GatedPrompt, LlamaAdapter
from peftkit.methods.vera import Vectors, VeRA
from peftkit.quantization.weight import shape

SHARED = "base_model"
"""Where the matrices that all of VeRA's adapters share stand."""
EXCHANGED = ("llama", "mistral")
"""Families where LLaMA-Adapter is the same there; in its only other one, GPT-2, it adds behind the output map."""


class ScaleConverter(Converter):
    """Scales of outputs [out, 1] and of inputs [1, in].

    The parts of a fused module share a vector of its outputs, with ones where nothing is scaled.
    """

    names: ClassVar[Mapping[str, str]] = {"ia3_l": "scale"}
    whole: ClassVar[str] = "part of an (IA)^3 adapter"

    def write(self, method: IA3, adapters: Mapping[str, Scale], model: nn.Module) -> tuple[Config, Tensors]:
        scales: Tensors = {}
        before: set[str] = set()
        for adapter in adapters.values():
            path, rows, mine = adapter.site.path, adapter.site.rows, adapter.scale.detach()
            if adapter.before:
                before.add(path)
                if rows is not None:
                    raise PeftkitError(
                        f"{method.name}: {adapter.site.id} is a part of a module, whose input Hugging Face peft scales "
                        "for all parts alike: use --format merged."
                    )
            elif rows is not None:
                whole = scales.get(path, torch.ones((shape(adapter.site.module) or (0, 0))[0], device=mine.device))
                mine = rows.put(whole, mine)
            scales[path] = mine
        config = self.config(target_modules=sorted(scales), feedforward_modules=sorted(before))
        return config, self.named((p, {"scale": s[None] if p in before else s[:, None]}) for p, s in scales.items())

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        scales = {path: tensor for path, _, tensor in self.entries(tensors)}
        before = tuple(path for path, scale in scales.items() if scale.shape[0] == 1 and scale.ndim == 2)
        after = tuple(path for path in scales if path not in before)
        method = self.method(targets=after, feedforward=before)
        return method, {f"{path}/scale": scale.flatten() for path, scale in scales.items()}


class VectorsConverter(Converter):
    """Trained vectors; the shared matrices always travel: that library's generator draws others from the same seed."""

    names: ClassVar[Mapping[str, str]] = {f"vera_{key}": key[-1] for key in ("A", "B", "lambda_b", "lambda_d")}
    needs: ClassVar[tuple[str, ...]] = ("r",)
    whole: ClassVar[str] = "part of a VeRA adapter"

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
        vectors = self.named((path, {"b": a.b.detach(), "d": a.d.detach()}) for path, a in adapters.items())
        return config, {f"{SHARED}.vera_A": shared.A, f"{SHARED}.vera_B": shared.B, **vectors}

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state = {
            f"{'shared' if path == SHARED else path}/{name}": tensor for path, name, tensor in self.entries(tensors)
        }
        method = self.method(
            rank=config["r"],
            projection_seed=config.get("projection_prng_key") or 0,
            save_projection="shared/A" in state,
            dropout=float(config.get("vera_dropout") or 0),
            targets=tuple(sorted({key.rpartition("/")[0] for key in state} - {"shared"})),
        )
        return method, state


class KroneckerConverter(Converter):
    """Whole factors of LoKr, as which they are read. The scale goes into A; a rank as large as they are says whole."""

    names: ClassVar[Mapping[str, str]] = {"lokr_w1": "A", "lokr_w2": "B"}

    def reads(self, config: Mapping[str, Any]) -> bool:
        return False

    def write(self, method: KronA, adapters: Mapping[str, Kronecker], model: nn.Module) -> tuple[Config, Tensors]:
        for adapter in adapters.values():
            if adapter.site.rows is not None or not isinstance(adapter.site.module, nn.Linear):
                raise PeftkitError(
                    f"{method.name}: {adapter.site.id} is part of a fused module or no plain linear, which Hugging "
                    "Face peft does not take for this method: use --format merged."
                )
        largest = max(size for adapter in adapters.values() for size in adapter.B.shape)
        config = self.config(
            r=largest,
            alpha=largest,
            decompose_both=False,
            decompose_factor=method.factor or -1,
            target_modules=sorted(adapter.site.path for adapter in adapters.values()),
        )
        factors = ((a.site.path, {"A": a.A.detach() * method.scale, "B": a.B.detach()}) for a in adapters.values())
        return config, self.named(factors)


class NormConverter(Converter):
    """Weights and biases of the model's own normalisation layers: the method has no adapters."""

    names: ClassVar[Mapping[str, str]] = {f"ln_tuning_layers.{key}": key for key in ("weight", "bias")}
    whole: ClassVar[str] = "of a normalisation layer"

    def write(self, method: LayerNormTuning, adapters: Mapping[str, Any], model: nn.Module) -> tuple[Config, Tensors]:
        layout = Layout(model)
        norms = {path: layout.modules[path].named_parameters(recurse=False) for path in sorted(method.paths(layout))}
        own = ((path, {key: value.detach() for key, value in parameters}) for path, parameters in norms.items())
        return self.config(target_modules=list(norms)), self.named(own)

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        state = {f"own/{path}.{name}": tensor for path, name, tensor in self.entries(tensors)}
        paths = {key.removeprefix("own/").rpartition(".")[0] for key in state}
        inside = {index for index, block in enumerate(layout.blocks) if any(p.startswith(block + ".") for p in paths)}
        return self.method(layers=None if paths >= set(layout.norms()) else tuple(sorted(inside))), state


class GatedPromptConverter(Converter):
    """One prompt [1, length, width] and one gate [1] for each of the topmost layers."""

    names: ClassVar[Mapping[str, str]] = {"adaption_prompt": "P", "adaption_gate": "g"}
    whole: ClassVar[str] = "part of a LLaMA-Adapter"

    def write(
        self, method: LlamaAdapter, adapters: Mapping[str, GatedPrompt], model: nn.Module
    ) -> tuple[Config, Tensors]:
        self._check(Layout(model), method.variant)
        prompts = ((path, {"P": a.P.detach()[None], "g": a.g.detach()}) for path, a in adapters.items())
        return self.config(adapter_len=method.length, adapter_layers=len(adapters)), self.named(prompts)

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout) -> tuple[Method, Tensors]:
        self._check(layout, "paper")
        state = {f"{path}/{name}": t.squeeze(0) if name == "P" else t for path, name, t in self.entries(tensors)}
        return self.method.from_options(
            {"length": config.get("adapter_len"), "top": config.get("adapter_layers")}
        ), state

    def _check(self, layout: Layout, variant: str) -> None:
        has_plain_heads = layout.attention()[0].parts["q"].outputs == layout.width
        if layout.kind not in EXCHANGED or not has_plain_heads or variant != "paper":
            raise PeftkitError(
                f"{self.method.name}: Hugging Face peft computes the same for {' and '.join(EXCHANGED)} models whose "
                f"heads add up to their width, with variant paper; this is a {layout.kind} model with variant "
                f"{variant}: {ALONE}."
            )


CONVERTERS.add("ia3", ScaleConverter(IA3, "IA3"))
CONVERTERS.add("vera", VectorsConverter(VeRA, "VERA"))
CONVERTERS.add("krona", KroneckerConverter(KronA, "LOKR"))
CONVERTERS.add("layernorm-tuning", NormConverter(LayerNormTuning, "LN_TUNING"))
CONVERTERS.add("llama-adapter", GatedPromptConverter(LlamaAdapter, "ADAPTION_PROMPT"))
