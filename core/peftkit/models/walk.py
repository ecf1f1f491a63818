"""Running examples through a model layer by layer, each layer as those before it are by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.layout import Layout
from peftkit.quantization.inputs import Inputs
from peftkit.quantization.weight import shape

Run = Callable[[], None]


class Walk:
    """Goes over a model's layers with examples, ids [1, T] each; a layer may be changed before the next is reached.

    What each layer reads of every example is kept, so that all layers together run three times: once to see how they
    are called, once to be looked at, and once changed. Where a layer is not given what the one before it returned,
    nothing is kept, and the whole model runs for each layer.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Tensor]):
        device = next(model.parameters()).device
        self.model, self.rows = model, [row.to(device) for row in rows]
        self.blocks = [model.get_submodule(path) for path in Layout(model).blocks]
        self._states: list[Tensor] = []
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []

    def layers(self) -> Iterator[tuple[int | None, Run]]:
        """Iterate over the layers, and None for all that lies outside; the function runs every example once.

        The model is in eval mode while this goes on, without gradients.
        """
        training = self.model.training
        self.model.eval()
        try:
            chained = self._look()
            for layer in range(len(self.blocks)):
                yield layer, partial(self._step, layer) if chained else self._whole
                if chained:
                    self._step(layer, keep=True)
                    self._calls[layer] = []
            self._states, self._calls = [], []
            yield None, self._whole
        finally:
            self.model.train(training)

    @torch.no_grad()
    def _whole(self) -> None:
        for ids in self.rows:
            self.model(input_ids=ids, use_cache=False)

    @torch.no_grad()
    def _step(self, layer: int, keep: bool = False) -> None:
        for number, (args, kwargs) in enumerate(self._calls[layer]):
            after = _hidden(self.blocks[layer](self._states[number], *args, **kwargs))
            if keep:
                self._states[number] = after

    def _look(self) -> bool:
        """Keep how every layer is called; say whether each is given what the one before it returned."""
        self._states, self._calls = [], [[] for _ in self.blocks]
        last: list[Any] = []
        chained = [True]

        def before(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else None
            due = layer == len(last) and (given is last[-1] if last else isinstance(given, Tensor))
            chained[0] = chained[0] and due
            if chained[0]:
                self._calls[layer].append((args[1:], kwargs))
                if layer == 0:
                    self._states.append(args[0])

        def after(module: nn.Module, args: Any, output: Any) -> None:
            last.append(_hidden(output))

        with ExitStack() as hooks, torch.no_grad():
            for layer, block in enumerate(self.blocks):
                hooks.callback(block.register_forward_pre_hook(partial(before, layer), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after).remove)
            for ids in self.rows:
                last.clear()
                self.model(input_ids=ids, use_cache=False)
                chained[0] = chained[0] and len(last) == len(self.blocks)
                if not chained[0]:
                    self._states, self._calls = [], []
                    return False
        return True


def observe(model: nn.Module, paths: Sequence[str], run: Run, products: bool = True) -> dict[str, Inputs]:
    """Return what the linear maps at `paths` read while `run` goes on; see `Inputs` for `products`."""
    seen: dict[str, Inputs] = {}
    for path in paths:
        sizes = shape(model.get_submodule(path))
        assert sizes is not None
        seen[path] = Inputs(sizes[1], next(model.parameters()).device, products)
    with _watching(model, seen):
        run()
    return seen


@contextmanager
def _watching(model: nn.Module, seen: Mapping[str, Inputs]) -> Iterator[None]:
    def look(inputs: Inputs, module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.add(args[0])

    with ExitStack() as hooks:
        for path, inputs in seen.items():
            hooks.callback(model.get_submodule(path).register_forward_pre_hook(partial(look, inputs)).remove)
        yield


def _hidden(output: Any) -> Any:
    return output if isinstance(output, Tensor) else output[0]
