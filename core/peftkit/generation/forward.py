"""The model's forward pass as decoding calls it: with what the model takes."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

OPTIONAL = frozenset({"attention_mask", "position_ids", "logits_to_keep"})
"""Passed where the model names them: those with linear biases count positions from the mask themselves."""


class Forward:
    """Calls a model with the inputs that its signature has."""

    def __init__(self, model: Any):
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.device = next(model.parameters()).device
        parameters = inspect.signature(model.forward).parameters
        self.named = frozenset(parameters)
        self.takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    def __call__(self, ids: Tensor, **given: Any) -> Any:
        """Return what the model gives for tokens [rows, new]."""
        taken = {
            name: value
            for name, value in given.items()
            if name in self.named or (self.takes_more and name not in OPTIONAL)
        }
        return self.model(input_ids=ids, **taken)
