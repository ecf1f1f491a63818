"""Loading a base model and its tokenizer from a folder, the hub, the package, or at random from a description."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.models import configuration, foreign, layerwise, packed_cache, packed_folder, tokenizer
from peftkit.models import folder as folders
from peftkit.models.allocation import within
from peftkit.models.fingerprint import fingerprint
from peftkit.models.quantize import Quantization, quantize
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import dense

if TYPE_CHECKING:
    from peftkit.recipe import ModelSection, QuantizationSection

STALE_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


@dataclass
class LoadedModel:
    """A base model in eval mode with its tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    name: str
    fingerprint: str | None
    """None on the meta device."""
    source: Path | None
    """The folder with the original files; None for random weights."""
    storage: dict[str, Any] = field(default_factory=lambda: Quantization().description())
    """How the weights are stored: format, its options, and formats of modules by pattern."""

    @property
    def has_originals(self) -> bool:
        """Whether the weights can be had as they were before they were packed."""
        return self.source is None or not (packed_folder.is_packed(self.source) or foreign.is_foreign(self.storage))


def load(
    section: ModelSection,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    weights: bool = True,
    quantization: QuantizationSection | None = None,
) -> LoadedModel:
    """Load what `section` names onto `device`; `dtype` None follows the section.

    With `quantization` the linear layers that it names are packed; the fingerprint is that of the weights before. A
    folder of packed weights is loaded as it is stored. An automatic dtype is fp32 on the CPU, and elsewhere the
    checkpoint's own (bfloat16 for float16). Without `weights` the model is on the meta device, made from the
    configuration alone. Raises PeftkitError naming the file at fault.
    """
    device = torch.device(device)
    chosen = Quantization() if quantization is None else Quantization.of(quantization)
    with quiet():
        budget = None if quantization is None else quantization.budget
        if section.init is not None:
            return _packed(_random(section, device, dtype, weights), chosen, budget)
        folder = folders.find(str(section.name), section.revision, weights=weights, code=section.trust_remote_code)
        config = configuration.from_folder(folder, trust_remote_code=section.trust_remote_code)
        trust = section.trust_remote_code
        words = load_tokenizer(section) if section.tokenizer else tokenizer.read(folder, trust_remote_code=trust)
        if foreign.method_of(config) is not None:
            storage = foreign.storage(config)
            asked = chosen.packs or budget is not None
            model, mark = _read_foreign(folder, config, section, device, dtype, weights, asked)
            loaded = _loaded(model, words, str(section.name), section, folder, device, mark)
            loaded.storage = storage
            return loaded
        ready = packed_folder.is_packed(folder)
        chosen = _stored(folder, chosen, budget) if ready else chosen
        if not weights:
            model = _on_meta(config, dtype or _dtype(section.dtype, device, cast(Any, config).dtype), trust)
            return _packed(_loaded(model, words, str(section.name), section, folder, device), chosen, budget)
        own = cast(Any, config).dtype if ready else folders.stored_dtype(folders.shards(folder))
        dtype = dtype or _dtype(section.dtype, device, own)
        if budget is not None and not ready:
            chosen = _spent(budget, chosen, folder, config, dtype, trust)
        if chosen.packs:
            read = _open_packed if ready else _read_packed
            found = read(folder, config, dtype, section, chosen)
            if found is not None:
                model, mark = found
                loaded = _loaded(model, words, str(section.name), section, folder, device, mark)
                loaded.storage = chosen.description()
                return loaded
        model = _read(folder, config, dtype, trust)
        return _packed(_loaded(model, words, str(section.name), section, folder, device), chosen)


def load_tokenizer(section: ModelSection) -> Any:
    """Load the section's tokenizer: the one it names, else the model's own; the padding token is always set."""
    name = section.tokenizer or section.name
    if name is None:
        raise PeftkitError(
            "model.init describes a model without a tokenizer: name one with `model.tokenizer`, such as bundled/tiny "
            "or a folder with tokenizer.json."
        )
    revision = None if section.tokenizer else section.revision
    with quiet():
        folder = folders.find(name, revision, weights=False, code=section.trust_remote_code)
        return tokenizer.read(folder, trust_remote_code=section.trust_remote_code)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and the advice of transformers and the hub off the terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hub, packer = logging.getLogger("huggingface_hub"), logging.getLogger("bitsandbytes")
    verbosity, hub_level, packer_level = transformers_logging.get_verbosity(), hub.level, packer.level
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    hub.setLevel(logging.CRITICAL)
    packer.setLevel(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        packer.setLevel(packer_level)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def _random(section: ModelSection, device: torch.device, dtype: torch.dtype | None, weights: bool) -> LoadedModel:
    assert section.init is not None
    words = load_tokenizer(section)
    sizes = {
        "vocab_size": max(words.get_vocab().values()) + 1,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = configuration.from_init(section.init, sizes)
    dtype = dtype or _dtype(section.dtype, device, torch.float32)
    if weights:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(section.seed)
            # Drawn in fp32 whatever the dtype, so that one seed means one model.
            model = _build(config, torch.float32, "model.init")
        cast(nn.Module, model).to(dtype)
    else:
        model = _on_meta(config, dtype)
    return _loaded(model, words, f"init/{config.model_type}", section, None, device)


def _loaded(
    model: PreTrainedModel,
    words: Any,
    name: str,
    section: ModelSection,
    source: Path | None,
    device: torch.device,
    mark: str | None = None,
) -> LoadedModel:
    rows = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    tokenizer.check_size(words, rows, "model.init" if source is None else str(source))
    if not next(model.parameters()).is_meta:
        cast(nn.Module, model).to(device)
    return LoadedModel(model.eval(), words, name, mark or fingerprint(model, _as_if(section)), source)


def _as_if(section: ModelSection) -> torch.dtype | None:
    """As if loaded in the section's dtype, so that merging in fp32 recognises a base that was trained on in float16."""
    return None if section.dtype == "auto" else getattr(torch, section.dtype)


def _packed(loaded: LoadedModel, chosen: Quantization, budget: float | None = None) -> LoadedModel:
    if budget is not None:
        layout, model = Layout(loaded.model), loaded.model
        read = None if loaded.fingerprint is None else lambda path: dense(model.get_submodule(path))
        chosen = within(budget, chosen, layout, read)
    if chosen.packs:
        quantize(loaded.model, chosen)
        loaded.storage = chosen.description()
    return loaded


def _spent(
    budget: float, chosen: Quantization, folder: Path, config: PretrainedConfig, dtype: torch.dtype, trust: bool
) -> Quantization:
    """Spend a budget on the weights in a folder, which are read one by one; the choice is kept for the next start."""
    paths = folders.shards(folder)
    kept = None if chosen.modules else packed_cache.folder(paths, {"budget": budget, "dtype": str(dtype)})
    earlier = packed_cache.choice(kept) if kept else None
    if earlier is not None:
        chosen = Quantization.described(earlier)
    with layerwise.without_weights():
        model = cast(nn.Module, _build(config, dtype, "model", trust))
    homes = layerwise.places(paths)

    def read(path: str) -> Tensor:
        name = f"{path}.weight"
        if name in homes:
            return layerwise.again(homes[name], name, dtype, isinstance(model.get_submodule(path), Conv1D))
        # Names that transformers converts: it has to read the whole checkpoint.
        return dense(whole().get_submodule(path))

    @cache
    def whole() -> nn.Module:
        return cast(nn.Module, _read(folder, config, dtype, trust))

    chosen = within(budget, chosen, Layout(model), read)
    if kept and earlier is None:
        packed_cache.keep_choice(kept, chosen.description())
    return chosen


def _stored(folder: Path, chosen: Quantization, budget: float | None) -> Quantization:
    """Return how a folder of packed weights stores them; a recipe that asks for anything else is refused."""
    stored = Quantization.described(packed_folder.facts(folder)["storage"])
    if (chosen.packs or budget is not None) and chosen != stored:
        asked = chosen.told() if chosen.packs else f"a budget of {budget:g} bits a weight asks"
        raise PeftkitError(
            f"quantization: the weights in {folder} are packed already, as {stored.told()}, and cannot be packed as "
            f"{asked}: leave quantization out, or name the original model."
        )
    return stored


def _on_meta(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    with torch.device("meta"):
        return _build(config, dtype, "model", trust_remote_code)


def _build(
    config: PretrainedConfig, dtype: torch.dtype, where: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:  # sizes that do not fit together fail in the model's own code, in every way
        raise PeftkitError(
            f"{where}: no {config.model_type} can be built from this configuration: {configuration.one_line(error)}"
        ) from error


def _read(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool, **rest: Any
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **rest,
        )
    except Exception as error:  # the model's own code may fail in every way on a wrong configuration
        raise PeftkitError(f"model: {folder} cannot be loaded: {configuration.one_line(error)}") from error
    model, found = loaded
    if found["mismatched_keys"]:
        name, stored, wanted = sorted(found["mismatched_keys"])[0]
        raise PeftkitError(
            f"model: '{name}' in {folder} has the shape {list(stored)}, and its config.json asks for {list(wanted)}."
        )
    _refuse(folder, "lacks", found["missing_keys"])
    _refuse(folder, "holds, beyond what config.json describes,", found["unexpected_keys"])
    if found.get("error_msgs"):
        raise PeftkitError(f"model: {folder} cannot be loaded: {'; '.join(found['error_msgs'])}")
    return model


def _open_packed(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, section: ModelSection, stored: Quantization
) -> tuple[PreTrainedModel, str | None]:
    """Read a folder of packed weights; returns the model with the fingerprint of the weights before."""
    model, packed = _outline(config, dtype, section, stored)
    mark = packed_folder.fill(model, folder, packed, dtype)
    return _with_settings(model, folder), mark


def _read_foreign(
    folder: Path,
    config: PretrainedConfig,
    section: ModelSection,
    device: torch.device,
    dtype: torch.dtype | None,
    weights: bool,
    asked: bool,
) -> tuple[PreTrainedModel, str | None]:
    """Read a checkpoint that another library has quantized; returns it with its fingerprint.

    `asked` says whether the recipe wants it packed, which is refused.
    """
    if asked:
        raise PeftkitError(
            f"quantization: the weights in {folder} are quantized already ({foreign.method_of(config)}). Leave "
            "`quantization` out, or name the original checkpoint."
        )
    foreign.prepare(config)
    dtype = dtype or _dtype(section.dtype, device, cast(Any, config).dtype)
    if not weights:
        model = _on_meta(config, dtype, section.trust_remote_code)
        try:
            foreign.outline(model, dtype)
        except Exception as error:  # each library's quantizer fails in its own way
            raise PeftkitError(f"model: {folder} cannot be loaded: {configuration.one_line(error)}") from error
        return model, None
    paths = folders.shards(folder)
    model = _read(folder, config, dtype, section.trust_remote_code, device_map={"": str(device)})
    foreign.take_over(model, dtype, folder)
    return model, foreign.marked(model, paths)


def _read_packed(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, section: ModelSection, chosen: Quantization
) -> tuple[PreTrainedModel, str] | None:
    """Read a checkpoint layer by layer, or its packed form that an earlier start kept; returns it with its fingerprint.

    None where transformers has to convert the checkpoint's names: it is then read whole and packed after that.
    """
    paths, as_if = folders.shards(folder), _as_if(section)
    model, packed = _outline(config, dtype, section, chosen)
    kept = packed_cache.folder(paths, {**chosen.description(), "dtype": str(dtype), "as_if": str(as_if)})
    mark = packed_cache.read(kept, paths, model, packed, dtype) if kept else None
    if mark is None:
        mark = layerwise.read(model, paths, dtype, packed, as_if)
        if mark is not None and kept:
            packed_cache.write(kept, model, mark, chosen.description())
    return None if mark is None else (_with_settings(model, folder), mark)


def _outline(
    config: PretrainedConfig, dtype: torch.dtype, section: ModelSection, chosen: Quantization
) -> tuple[PreTrainedModel, dict[str, Quantizer]]:
    """Build the model without its weights, and find which of its layers are packed."""
    with layerwise.without_weights():
        model = _build(config, dtype, "model", section.trust_remote_code)
    return model, chosen.choose(Layout(cast(nn.Module, model)))


def _with_settings(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _refuse(folder: Path, fault: str, keys: set[str]) -> None:
    faults = sorted(key for key in keys if not key.endswith(STALE_BUFFERS))
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise PeftkitError(
            f"model: the checkpoint in {folder} {fault} {', '.join(faults[:3])}{more}: the weights and config.json do "
            "not belong together."
        )


def _dtype(choice: str, device: torch.device, own: torch.dtype | None) -> torch.dtype:
    if choice != "auto":
        return getattr(torch, choice)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if own == torch.float16 else own or torch.float32
