"""A causal model taken apart into its hidden states and the logits that it makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.engine.graph import leaves
from peftkit.engine.proof import Draw, same
from peftkit.ports.context import context_of
from peftkit.quantization.weight import shape

COLUMNS = 16
"""Different outputs of the layer that stands for the output layer while the head is tried."""
ROWS, LENGTH = 2, 3
"""Of the tokens on which it is tried."""


class Head:
    """The head of `model`, run apart from its body by passing that by; the model's own code does the rest.

    Scaled or capped logits come out as the model makes them, and an adapted, packed or tied head is what it is. Before
    that both are tried: whether the logits of hidden states are those of the whole model (`refusal` says where not),
    and whether they are the output layer's of these very hidden states.
    """

    def __init__(self, model: nn.Module):
        self.model = cast(Any, model)
        self.layer = cast("nn.Module | None", _asked(model, "get_output_embeddings"))
        self.bodies = _bodies(model, self.layer)
        self._masked = True
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._trained: list[Tensor] | None = None
        self._is_layer = False
        self.refusal = self._tried()

    def hidden(self, prompt: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Run the body and return the last hidden states [B, T, width]; `prompt` tells adapters what is answered."""
        given = {name: x for name, x in inputs.items() if self._masked or name != "attention_mask"}
        with context_of(self.model).prompted(prompt):
            return _first(self.bodies[0](**given, use_cache=False), "last_hidden_state")

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [P, V] of hidden states [P, width]."""
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _passed(self.bodies, hidden.unsqueeze(0)):
            return logits_of(self.model(input_ids=ids, use_cache=False)).squeeze(0)

    def scratch(self, device: torch.device, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return memory of this shape that every call uses: large memory takes long to be given out."""
        size = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or len(kept) < size or kept.device != device:
            kept = self._kept[name, dtype] = torch.empty(size, dtype=dtype, device=device)
        return kept[:size].view(*shape)

    def share_memory(self, other: Head) -> None:
        """Take the scratch memory of another head of the same model."""
        self._kept = other._kept

    def release_memory(self) -> None:
        """Give back what `scratch` keeps."""
        self._kept.clear()

    def plain(self) -> nn.Linear | None:
        """Return the output layer if it is frozen and dense, and the logits are what it makes of the hidden states."""
        layer = self.layer
        bare = self._is_layer and type(layer) is nn.Linear and not any(p.requires_grad for p in layer.parameters())
        return cast(nn.Linear, layer) if bare else None

    def trained(self, hidden: Tensor) -> list[Tensor]:
        """Return the parameters that the logits depend on and that are trained, read once from the graph of a few."""
        if self._trained is None:
            with torch.enable_grad():
                self._trained = leaves(self.logits(hidden[:1].detach()))
        return self._trained

    def _tried(self) -> str | None:
        """Say why the head cannot run apart, and find out whether it is its layer and nothing else.

        The body is passed by, and a layer of random weights stands for the output layer, whatever that is: what is
        tried is the model's own code around them.
        """
        sizes = None if self.layer is None else shape(self.layer)
        if not self.bodies or sizes is None:
            return "it has no body and output layer that can be told apart"
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))
        device, draw = torch.device("cpu") if like.is_meta else like.device, Draw()
        hidden = draw(ROWS, LENGTH, sizes[1]).to(device, like.dtype)
        layer = _Layer(draw, *sizes).to(device, like.dtype)
        ids = torch.ones(ROWS, LENGTH, dtype=torch.long, device=device)
        mask, heard = torch.ones_like(ids), cast("list[tuple[nn.Module, list[Any]]]", [])

        def whole(x: Tensor) -> Tensor:
            with _passed(self.bodies, x, heard):
                output = self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            return logits_of(output).flatten(0, 1)

        def apart(x: Tensor) -> Tensor:
            return self.logits(x.flatten(0, 1))

        training = self.model.training
        self.model.eval()
        try:
            # Of what stands in the body nothing is asked here.
            bare, filled = context_of(self.model).only(None), _filled(self.model, self.bodies, draw)
            with bare, _in_place(self.model, cast(nn.Module, self.layer), layer), filled:
                if not same(whole, apart, hidden):
                    return "the logits of its hidden states are not those of the whole model"
                if not self._hears(heard, ids, mask):
                    return "it gives its body something else than tokens and their mask"
                self._is_layer = same(apart, lambda x: layer(x.flatten(0, 1)), hidden)
        finally:
            self.model.train(training)
        return None

    def _hears(self, heard: Sequence[tuple[nn.Module, list[Any]]], ids: Tensor, mask: Tensor) -> bool:
        """Say whether the model gave one body, once, tokens as they are, and beside them their mask at most."""
        if len(heard) != 1:
            return False
        body, given = heard[0]
        tensors = {id(x) for x in given if isinstance(x, Tensor)}
        self.bodies, self._masked = [body, *(other for other in self.bodies if other is not body)], id(mask) in tensors
        return id(ids) in tensors <= {id(ids), id(mask)}


class _Output(tuple[Tensor]):
    """What a body returns, in any form that a model's code reads: hidden states, and nothing beside them."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Layer(nn.Linear):
    """Stands for an output layer: random rows, a few different ones, repeated to as many outputs as that has."""

    def __init__(self, draw: Draw, outputs: int, inputs: int):
        super().__init__(inputs, COLUMNS, bias=False, device="meta")
        self.weight = nn.Parameter(draw(COLUMNS, inputs), requires_grad=False)
        self.outputs = outputs

    def forward(self, input: Tensor) -> Tensor:
        y = F.linear(input, self.weight)
        return y.repeat(*[1] * (y.dim() - 1), -(-self.outputs // COLUMNS))[..., : self.outputs]


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model returns."""
    return _first(output, "logits")


def _first(output: Any, name: str) -> Tensor:
    """Return what an output calls by this name, or its first part where it names none."""
    if isinstance(output, Tensor):
        return output
    named = getattr(output, name, None)
    return named if isinstance(named, Tensor) else output[0]


def _bodies(model: nn.Module, layer: nn.Module | None) -> list[nn.Module]:
    """Return the modules of which one may make the hidden states: by their names, and what holds the embedding."""
    embedding = _asked(model, "get_input_embeddings")
    holders = [child for child in model.children() if any(module is embedding for module in child.modules())]
    found = [getattr(model, "base_model", None), _asked(model, "get_decoder"), *holders]
    bodies = [body for body in found if isinstance(body, nn.Module) and body not in (model, layer, embedding)]
    return list(dict.fromkeys(bodies))


def _asked(model: nn.Module, name: str) -> Any:
    return getattr(model, name)() if hasattr(model, name) else None


@contextmanager
def _passed(bodies: list[nn.Module], hidden: Tensor, heard: list[Any] | None = None) -> Iterator[None]:
    """Have the bodies return `hidden` without running; `heard` gets what they are given."""

    def forward(body: nn.Module, *args: Any, **named: Any) -> _Output:
        if heard is not None:
            heard.append((body, [*args, *named.values()]))
        return _Output((hidden,))

    for body in bodies:
        body.__dict__["forward"] = partial(forward, body)
    try:
        yield
    finally:
        for body in bodies:
            del body.__dict__["forward"]


@contextmanager
def _in_place(model: nn.Module, module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Have `other` stand wherever the model has `module`."""
    places = [(m._modules, name) for m in model.modules() for name, child in m._modules.items() if child is module]
    for modules, name in places:
        modules[name] = other
    try:
        yield
    finally:
        for modules, name in places:
            modules[name] = module


@contextmanager
def _filled(model: nn.Module, bodies: list[nn.Module], draw: Draw) -> Iterator[None]:
    """Put random tensors in the place of those outside the bodies that hold nothing."""
    inside = {module for body in bodies for module in body.modules()}
    stores: list[Any] = [s for m in model.modules() if m not in inside for s in (m._parameters, m._buffers)]
    before = [dict(store) for store in stores]
    for store in stores:
        for name, tensor in store.items():
            if tensor is not None and tensor.is_meta:
                store[name] = draw(*tensor.shape).to(tensor.dtype)
    try:
        yield
    finally:
        for store, kept in zip(stores, before, strict=True):
            store.update(kept)
