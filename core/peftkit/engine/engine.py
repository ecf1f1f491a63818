"""How the loss of a micro-batch is computed: on flat tokens along a tree or on padded rows, with few logits.

Which of them is tried on a few rows before a run: a model whose layers mix tokens in a way of their own, or whose head
cannot be run apart from its body, gives other logits there, and is computed as its own code says.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from peftkit.data.batches import Batch, collate
from peftkit.data.encode import Encoded
from peftkit.data.rows import lengths_of
from peftkit.engine import packed_batch
from peftkit.engine.calls import check_calls
from peftkit.engine.fused_modules import FusedModules
from peftkit.engine.head import Head, logits_of
from peftkit.engine.outputs import HeadOutputs, WholeOutputs
from peftkit.engine.packed_attention import AttentionProof
from peftkit.engine.packed_batch import PackedBatch, row_by_row
from peftkit.engine.proof import FAULTS, proven
from peftkit.engine.rows import crosses, moved_by_padding
from peftkit.kernels.recompute import Recompute
from peftkit.method import Method
from peftkit.ports.attention_along import along
from peftkit.ports.context import context_of
from peftkit.ports.shared_input import SharedInput, groups_of, shared

PROBED = 24
"""Tokens of the rows on which the ways of computing are compared."""
FAR = 0.1
"""How far the logits of two ways may lie apart, relative to their spread; those of another row's tokens lie farther."""
NEAR, MOST = 1e-3, 0.75
"""The same of so many of the tokens in full precision: rounding sends single ones to other experts."""
ROUGH = (torch.bfloat16, torch.float16)
KINDS = {"full_attention", "sliding_attention"}
"""The kinds of layers that may run on flat tokens; others mix tokens by their order, or in chunks."""
STATES = {"linear_attention", "conv", "hybrid", "mamba", "recurrent", "mlp", "moe"}
"""The kinds that hold a state of what was before, and may start it anew where they are told that a row begins."""


@dataclass(frozen=True)
class Arrangement:
    """How micro-batches are computed."""

    flat: bool = True
    """Without padding, along a tree; else on padded rows."""
    share: bool = True
    """What rows have in common is computed once."""
    apart: bool = True
    """The head runs apart from the body, on what is trained alone and in chunks; else the model runs as a whole."""
    together: bool = True
    """Linear layers that read the same input, each with a low-rank pair, are one function."""
    bounded: bool = False
    """The layers are told where each of the flat rows begins and ends; nothing is shared then."""
    fused: bool = True
    """Norms, gated activations and rotary positions run as functions of our own, which keep less."""
    alone: bool = False
    """Of padded rows each runs by itself, without its padding."""


class Engine:
    """Computes what a model makes of micro-batches of one model, as its arrangement says."""

    def __init__(self, model: nn.Module, arrangement: Arrangement, groups: Sequence[SharedInput] = ()):
        self.model, self.arrangement = model, arrangement
        self.groups = proven(groups) if arrangement.together else []
        self.compiled = False
        """Whether the blocks are compiled, one code for all: which layers go together is known of each by itself."""
        self.offloads = False
        """Whether activations that are kept wait in the host's memory for the backward pass."""
        self.head = Head(model) if arrangement.apart else None
        self.fused_modules = FusedModules(model) if arrangement.fused else None
        self.notices: list[str] = []
        """What of the engine is left off, as it would compute something else."""
        left = [] if self.fused_modules is None else list(self.fused_modules.left_off)
        left += ["layers of one input"] if arrangement.together and len(self.groups) < len(groups) else []
        if left:
            self.notices.append(f"the model's own code runs where ours computes something else: {', '.join(left)}.")
        if self.head is not None and self.head.refusal is not None:
            self.notices.append(self.leave_whole(self.head.refusal))

    def leave_whole(self, why: str) -> str:
        """Leave the model whole from now on; returns a notice that says why."""
        self.arrangement, self.head = replace(self.arrangement, flat=False, share=False, apart=False), None
        return f"the logits of whole micro-batches are held at once: {why}."

    def pack(self, batch: Batch) -> PackedBatch:
        """Bring a padded batch into the form in which it is computed; `to(device)` moves that."""
        if self.head is not None and self.arrangement.flat:
            return packed_batch.flat(batch, self.arrangement.share, self.arrangement.bounded)
        packed = packed_batch.whole(batch) if self.head is None else packed_batch.padded(batch)
        lengths = tuple(batch.attention_mask.sum(1).tolist()) if self.arrangement.alone else None
        return replace(packed, lengths=lengths)

    @contextmanager
    def running(self, batch: PackedBatch) -> Iterator[None]:
        """Run forward and backward passes of what `pack` returned inside."""
        groups = () if self.compiled else self.groups
        along_tree = nullcontext() if batch.tree is None else along(self.model, batch.tree)
        with shared(groups), along_tree, self.fused():
            yield

    @property
    def recompute(self) -> Recompute | None:
        """What makes tensors once more instead of keeping them, where something does."""
        return None if self.fused_modules is None else self.fused_modules.recompute

    def fused(self) -> AbstractContextManager[None]:
        """Return the context in which elementwise work is ours; compiled blocks are the model's own code."""
        return nullcontext() if self.fused_modules is None or self.compiled else self.fused_modules.running()

    def keeping(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass keeps what its backward pass needs."""
        return torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda") if self.offloads else nullcontext()

    def forward(self, batch: PackedBatch, module: nn.Module | None = None) -> HeadOutputs | WholeOutputs:
        """Run the forward pass over what `pack` returned, within `running`; `module` is the objective's own."""
        if self.head is not None:
            return self.outputs(self.hidden(batch), batch, module)

        def run(prompt: Tensor | None, **inputs: Tensor | None) -> Tensor:
            with context_of(self.model).prompted(prompt):
                return logits_of(self.model(**inputs, use_cache=False))

        if batch.lengths is None and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            return WholeOutputs(batch, run(batch.prompt, **batch.inputs, logits_to_keep=batch.columns), module)
        return WholeOutputs(batch, row_by_row(run, batch)[:, batch.columns], module)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the hidden states [1, N, width] or [B, T, width] of what `pack` returned, within `running`."""
        assert self.head is not None
        return row_by_row(self.head.hidden, batch)

    def outputs(self, hidden: Tensor, batch: PackedBatch, module: nn.Module | None = None) -> HeadOutputs:
        """Return what hidden states [1, N, width] or [B, T, width] of a batch came to."""
        assert self.head is not None
        return HeadOutputs(batch, self.head, hidden, module)

    def release_memory(self) -> None:
        """Give back the memory that is kept from step to step."""
        if self.head is not None:
            self.head.release_memory()

    def logits(self, batch: PackedBatch) -> Tensor:
        """Return the logits [P, V] of the predictions."""
        assert self.head is not None
        return self.head.logits(self.hidden(batch).flatten(0, 1).index_select(0, batch.sources))


def choose(
    model: nn.Module,
    rows: Sequence[Encoded],
    pad_id: int,
    device: torch.device,
    wanted: Arrangement,
    methods: Sequence[Method] = (),
) -> tuple[Engine, list[str]]:
    """Return the engine nearest to `wanted` that gives the model's own logits, and notices where it is another.

    The comparison runs on short rows made of `rows`, without dropout, and leaves the random state and the model as
    they were; only what padding does is tried on the longest one. Raises PeftkitError for adapters on modules that the
    model never calls.
    """
    engine, notices = _nearest(model, rows, pad_id, device, wanted, methods)
    if not (engine.arrangement.flat or engine.arrangement.alone):
        why = moved_by_padding(engine, rows, pad_id, device)
        if why is not None:
            engine.arrangement = replace(engine.arrangement, alone=True)
            notices.append(f"padded rows run one after the other: {why}.")
    return engine, notices


def _nearest(
    model: nn.Module,
    rows: Sequence[Encoded],
    pad_id: int,
    device: torch.device,
    wanted: Arrangement,
    methods: Sequence[Method],
) -> tuple[Engine, list[str]]:
    if not wanted.apart:
        return Engine(model, wanted), []
    some, lengths = _cut(rows), lengths_of(rows).tolist()
    batch = collate([Encoded(ids, ids) for ids in some], pad_id)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            at = packed_batch.padded(batch).to(device)
            own, notices = check_calls(model, lambda: logits_of(model(**at.inputs, use_cache=False)))
            engine = Engine(model, wanted, groups_of(model))
            notices += engine.notices
            if engine.head is None:
                return engine, notices
            own = own.flatten(0, 1)[at.sources]
            if wanted.flat:
                why = refusal(model, lengths, methods) or _differs(engine, batch, own, device)
                if why is None:
                    return engine, notices
                if keeps_state(model, methods):
                    engine.arrangement = replace(wanted, share=False, bounded=True)
                    why = _differs(engine, batch, own, device)
                    if why is None:
                        return engine, notices
                notices.append(f"examples are padded, not packed: {why}.")
            engine.arrangement = replace(wanted, flat=False)
            why = _differs(engine, batch, own, device)
            if why is not None:
                notices.append(engine.leave_whole(why))
            return engine, notices
    finally:
        model.train(training)


def possible(wanted: Arrangement, model: nn.Module, lengths: Sequence[int], methods: Sequence[Method]) -> Arrangement:
    """Return what is wanted, as far as the model's configuration and the methods allow it."""
    return replace(wanted, flat=wanted.flat and refusal(model, lengths, methods) is None)


def fallbacks(wanted: Arrangement) -> list[Arrangement]:
    """List what is wanted and what takes its place where a model cannot: padded rows, then the model as a whole."""
    padded = replace(wanted, flat=False)
    whole = replace(padded, share=False, apart=False)
    return list(dict.fromkeys((wanted, padded, whole) if wanted.apart else (wanted,)))


def keeps_state(model: nn.Module, methods: Sequence[Method] = ()) -> bool:
    """Say whether layers of the model keep a state, and all may run on flat tokens if told where rows begin."""
    kinds = set(getattr(getattr(model, "config").get_text_config(), "layer_types", None) or ())  # noqa: B009
    return bool(kinds & STATES) and kinds <= KINDS | STATES and not any(method.by_row for method in methods)


def refusal(model: nn.Module, lengths: Sequence[int], methods: Sequence[Method] = ()) -> str | None:
    """Say why rows of these `lengths` cannot be flat tokens, as far as it shows without running; None if they may."""
    config = getattr(model, "config").get_text_config()  # noqa: B009
    drawing = [method.name for method in methods if method.by_row]
    if drawing:
        return f"what {drawing[0]} does goes by the row"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{config.model_type} models compute attention in a way of their own"
    if {module.is_causal for module in model.modules() if hasattr(module, "is_causal")} == {False}:
        return f"tokens of this {config.model_type} model attend to those behind them"
    unknown = sorted(set(getattr(config, "layer_types", None) or ()) - KINDS)
    if unknown:
        return f"this {config.model_type} model has layers of the kind {', '.join(unknown)}"
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and max(lengths) > chunk:
        return f"this {config.model_type} model attends in chunks of {chunk} tokens"
    return None


def _cut(rows: Sequence[Encoded]) -> list[list[int]]:
    """Return short rows of unequal length made of the first and the last of `rows`, two of which begin alike."""
    first, last = rows[0].ids[:PROBED], rows[-1].ids[:PROBED]
    first = first if len(first) > 1 else first * 2
    return [first, first[: len(first) // 2] + last[len(first) // 2 :], first[: len(first) // 2 + 1]]


def _differs(engine: Engine, batch: Any, own: Tensor, device: torch.device) -> str | None:
    """Say how the logits of an engine differ from the model's `own`, or what it raises; None where they agree."""
    model, kind = engine.model, type(engine.model).__name__
    context = context_of(model)
    attention = AttentionProof(context.own_attention or cast(Any, model).config.get_text_config()._attn_implementation)
    context.heard = attention
    try:
        ready = engine.pack(batch).to(device)
        with engine.running(ready):
            if ready.tree is not None:
                places = [torch.from_numpy(row[:-1]).to(device) for row in ready.tree.rows]
                ready = replace(ready, sources=torch.cat(places))
            logits = engine.logits(ready)
            if engine.arrangement.bounded and crosses(engine, ready):
                return f"in {kind}, a row changes those behind it"
    except torch.OutOfMemoryError:
        raise
    except FAULTS as error:
        said = str(error).splitlines() or [type(error).__name__]
        return f"{kind} does not run so ({said[0][:200]})"
    finally:
        context.heard = None
    if attention.wrong:
        return f"{attention.wrong[0]} attends in another way"
    spread = own.float().std().clamp(min=1e-6)
    apart = (logits.float() - own.float()).square().mean(-1).sqrt() / spread
    rough = any(parameter.dtype in ROUGH for parameter in model.parameters())
    far, most = apart.square().mean().sqrt(), apart.quantile(MOST)
    if not bool(far < FAR) or not (rough or bool(most < NEAR)):
        return f"{kind} computes something else then, {max(far, most):.2g} of the spread of its logits away"
    return None
