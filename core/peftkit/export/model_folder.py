"""Merge a run's adapter into its base model's weights and write a folder that plain transformers opens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from peftkit.errors import PeftkitError
from peftkit.export.trained import Trained
from peftkit.models.load import quiet
from peftkit.models.samples import compare, logits

BOUNDS = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The difference of a logit allowed after merging, as a fraction of the largest: what rounding the weights may cost."""
SHARD = "4GB"


def write_merged(trained: Trained, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Merge in fp32, cast once to `dtype`, write weights, configuration and tokenizer to `folder`, and check them.

    The check opens the folder in plain transformers and compares fp32 logits on sample prompts with the trained
    model's. Takes four bytes of memory a parameter, the model being held in fp32. Raises PeftkitError where the method
    cannot merge, and where the logits differ beyond the bound for `dtype`.
    """
    model, tokenizer = trained.base.model, trained.base.tokenizer
    expected = logits(model, tokenizer)
    trained.adaptation.merge_(keep_base=False)
    model.to(dtype)  # type: ignore[arg-type]
    with quiet():
        _save(model, folder)
        tokenizer.save_pretrained(folder)
    source = trained.base.source
    if source is not None and (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    with quiet():
        written = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trained.recipe.model.trust_remote_code,
        ).eval()
    found = compare(logits(written, tokenizer), expected, BOUNDS[dtype], "the merged model")
    return {**trained.report(), "dtype": str(dtype).removeprefix("torch."), **found}


def _save(model: PreTrainedModel, folder: Path) -> None:
    # The model's own generation settings may be invalid by today's rules and are copied as a file instead.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".seated." not in f".{name}"}
    try:
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=SHARD)
    except SafetensorError as error:
        raise PeftkitError(f"cannot write the merged weights to {folder.parent}: {error}. Is there space?") from None
