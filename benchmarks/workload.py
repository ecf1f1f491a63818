"""What the benchmarks of methods run: training steps on random tokens, of a random Llama or of a named model."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "core")]

if TYPE_CHECKING:
    from torch import nn

    from peftkit.method import Method
    from peftkit.models.loaded import LoadedModel
    from peftkit.training.loop import Loop

TOKENIZER = "bundled/tiny"


@dataclass(frozen=True)
class Case:
    """A method with options; the first case of each method has none."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name in the table."""
        return " ".join((self.method, *(f"{key}={value}" for key, value in self.options.items())))

    def build(self) -> Method:
        """Build the method."""
        from peftkit.method import METHODS

        return METHODS[self.method].from_options(self.options)


@dataclass(frozen=True)
class Size:
    """The model, made from its sizes unless it is named, and the batch of `rows` times `length` tokens."""

    model: str | None
    width: int
    layers: int
    rows: int
    length: int


def load_model(size: Size) -> LoadedModel:
    """Build the Llama of the sizes with random weights, or load the named model."""
    from peftkit.models.load import load
    from peftkit.recipe import ModelSection

    if size.model is not None:
        return load(ModelSection(name=size.model))
    heads = max(1, size.width // 64)
    config = {"hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": heads}
    config |= {"intermediate_size": size.width * 11 // 4, "num_key_value_heads": heads}
    return load(ModelSection(init={"architecture": "llama", **config}, tokenizer=TOKENIZER))


def share_weights(model: nn.Module) -> nn.Module:
    """Copy a model whose parameters keep the memory of the original's."""
    import copy

    from torch import nn

    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, shared)


def make_loop(case: Case, model: Any, tokenizer: Any, size: Size, steps: int) -> Loop:
    """Attach the method and build the training loop over one batch of random tokens, all of which are trained on."""
    import torch

    from peftkit.adaptation import attach
    from peftkit.data.batches import Batches, Epoch
    from peftkit.data.encode import IGNORED, Encoded
    from peftkit.engine.engine import Arrangement, Engine
    from peftkit.recipe import TrainSection
    from peftkit.training import nesting

    adaptation = attach(model, [case.build()], keep_base=False)
    for part in adaptation.parts:
        for parameter in part.own.values():  # what is trained must not stand in memory that other models share
            parameter.data = parameter.data.clone()
    soft, generator = list(adaptation.soft_ids), torch.Generator().manual_seed(0)
    texts = torch.randint(3, len(tokenizer), (size.rows, size.length), generator=generator).tolist()
    encoded = [Encoded([*soft, *ids], [*[IGNORED] * len(soft), *ids]) for ids in texts]
    batches = Batches(encoded, batch_examples=size.rows)
    torch.manual_seed(0)
    pad_id = tokenizer.pad_token_id
    adaptation.prepare(Epoch(batches, 0, pad_id))
    section = TrainSection(max_steps=steps, batch_examples=size.rows)
    engine = Engine(model, Arrangement(flat=False))
    return nesting.make_loop(engine, adaptation, batches, section, pad_id=pad_id, device=torch.device("cpu"))


def show(progress: str) -> None:
    """Tell on a terminal what is done, each time in the place of the last."""
    if sys.stderr.isatty():
        print(f"\r{progress:<60}", end="\r", file=sys.stderr, flush=True)
