"""Random weights from a description, `model.init`."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from peftkit.free_memory import check_room
from peftkit.models import build, configuration
from peftkit.models.loaded import LoadedModel
from peftkit.models.sources import Request, ready
from peftkit.models.tokenizer import load_tokenizer


def load(request: Request) -> LoadedModel:
    """Build what `model.init` describes; sizes that follow from the tokenizer need not be written."""
    section = request.section
    tokenizer = load_tokenizer(section)
    sizes = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = configuration.from_init(section.init or {}, sizes)
    dtype = request.dtype_of(torch.float32)
    model = build.on_meta(config, torch.float32 if request.weights else dtype)
    if request.weights:
        check_room(sum(tensor.nbytes for tensor in cast(nn.Module, model).parameters()), "model.init")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(section.seed)
            # Drawn in fp32 whatever the dtype, so that one seed means one model.
            model = build.build(config, torch.float32, "model.init")
        cast(nn.Module, model).to(dtype)
    return ready(request, model, tokenizer, name=f"init/{config.model_type}")
