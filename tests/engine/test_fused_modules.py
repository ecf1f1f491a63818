"""What stands in for norms, gated activations and rotary positions is what the model computes, and keeps less."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from losses import loss_of
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from peftkit.adaptation import attach
from peftkit.data.batches import Batches, collate
from peftkit.data.encode import Encoded
from peftkit.engine import fused_modules
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.engine.fused_modules import FusedModules
from peftkit.engine.memory_plan import recompute
from peftkit.engine.proof import Kinds
from peftkit.estimation.asked import arrangement_of
from peftkit.kernels.elementwise import gated, norm
from peftkit.kernels.recompute import Recompute
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.ports.seat import Seat
from peftkit.profiling.owners import watched
from peftkit.profiling.saved import Saved
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop

CPU = torch.device("cpu")
FOUND = {"llama": (5, 2, 1), "mistral": (5, 2, 1), "gemma": (5, 2, 1), "qwen3": (9, 2, 1), "gpt2": (0, 0, 0)}
"""How many norms, feed-forward parts and rotary functions of the tiny models are stood in for."""


def rows(count: int = 6) -> list[Encoded]:
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 96, (9 + 4 * number,), generator=draw).tolist() for number in range(count)]
    return [Encoded(row, [-100] * 4 + row[4:]) for row in ids]


def adapted(method: str = "lora", architecture: str = "llama", dtype: torch.dtype = torch.float32, **options: Any):
    """Return a tiny model and its adaptation, trained weights moved away from where they start."""
    model = tiny(architecture).to(dtype).train()
    given = {"targets": "linear", **options} if method == "lora" else options
    adaptation = attach(model, [METHODS[method].from_options(given)], seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter) * 0.05)
    return model, adaptation


def passes(model: nn.Module, adaptation: Any, fused: bool, *, backward: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Return the loss and the gradients of one micro-batch."""
    engine = Engine(model, Arrangement(fused=fused))
    packed = engine.pack(collate(rows(), 0))
    with engine.running(packed):
        loss = loss_of(engine, packed)
        wanted = [parameter for _, parameter in adaptation.parameters()]
        result = torch.autograd.grad(loss, wanted, allow_unused=True) if backward else []
    return loss.detach(), [torch.zeros(()) if gradient is None else gradient for gradient in result]


def replaced(model: nn.Module, result: FusedModules) -> set[str]:
    """Return the paths of the modules that run otherwise while something stands in."""
    with result.running():
        return {path for path, module in model.named_modules() if "forward" in module.__dict__}


@pytest.mark.parametrize("architecture", FOUND)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_and_gradients_are_the_models_own(architecture: str, dtype: torch.dtype):
    model, adaptation = adapted("lora", architecture, dtype)
    engine = Engine(model, Arrangement())
    assert engine.fused_modules is not None
    places = engine.fused_modules.norms, engine.fused_modules.gated, engine.fused_modules.rotary
    norms, *others = FOUND[architecture]
    # The models' norms are in fp32 in any case, and one in fp64 would be another.
    assert tuple(map(len, places)) == (0 if dtype == torch.float64 else norms, *others)
    own, mine = (passes(model, adaptation, fused) for fused in (False, True))
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert mine[0].item() == pytest.approx(own[0].item(), rel=bound)
    for one, other in zip(own[1], mine[1], strict=True):
        assert (one - other).norm() <= bound * one.norm()


def test_bf16_is_as_near_to_fp64_as_the_models_own_code():
    exact = passes(*adapted(dtype=torch.float64), False)
    far = []
    for fused in (False, True):
        result = passes(*adapted(dtype=torch.bfloat16), fused)[1]
        pairs = zip(result, exact[1], strict=True)
        far.append(sum(((one.double() - two).norm() / two.norm()).item() for one, two in pairs))
    assert far[1] < 1.1 * far[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_recomputed_has_the_same_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    seen = []
    pack = Recompute.pack

    def check(self: Recompute, tensor: Tensor) -> Any:
        source = self.source(tensor)
        if source is not None:
            made = source.make()
            part = made.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            seen.append(torch.equal(part, tensor) and part.dtype == tensor.dtype)
        return pack(self, tensor)

    monkeypatch.setattr(Recompute, "pack", check)
    passes(*adapted(dtype=dtype), True)
    # Of each layer q, k, v, gate, up and down; o reads what attention makes.
    assert len(seen) == 2 * 6
    assert all(seen)


def test_what_is_recomputed_is_cast_as_it_was():
    """Autocast runs some functions in another precision, and a backward pass knows nothing of it."""
    draw = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=draw)
    gate, up = (torch.randn(3, 8, generator=draw).requires_grad_() for _ in range(2))
    recompute, results = Recompute(), []
    with recompute.running():
        for function in (lambda: (gate @ mix) * up, lambda: gated(recompute, gate, up, lambda x: x @ mix)):
            with torch.autocast("cpu", torch.bfloat16):
                assert (gate @ mix).dtype == torch.bfloat16
                y = function()
                loss = (y * y).sum()
            results.append((y.detach(), *torch.autograd.grad(loss, (gate, up))))
    for own, mine in zip(*results, strict=True):
        assert own.dtype == mine.dtype
        assert (own - mine).norm() <= 1e-2 * own.norm()
    assert torch.equal(results[0][0], results[1][0])


def test_readers_that_follow_each_other_share_what_is_made():
    made = []

    def double(x: Tensor) -> Tensor:
        made.append(x)
        return x * 2

    recompute = Recompute()
    x = torch.arange(6.0).view(2, 3)
    with recompute.running():
        y, z = x * 2, x * 2
        for one in (y, z):
            recompute.remember(one, double, x)
        kept = [recompute.pack(tensor) for tensor in (y, y.T, z, y[1:])]
        expected = [y, y.T, z, y[1:]]
        assert all(saved.tensor is None for saved in kept)
        for saved, tensor in zip(kept[:2], expected, strict=False):
            assert torch.equal(recompute.unpack(saved), tensor)
        assert len(made) == 1
        assert torch.equal(recompute.unpack(kept[2]), z)
        assert torch.equal(recompute.unpack(kept[3]), y[1:])
    assert len(made) == 3


def test_what_was_written_to_or_is_gone_is_kept_as_it_is():
    recompute = Recompute()
    y = torch.ones(1000)
    recompute.remember(y, torch.ones_like, torch.zeros(1000))
    assert recompute.pack(y).source is not None
    y.add_(1)
    assert recompute.pack(y).source is None
    del y
    for _ in range(8):
        # Memory of the same size is likely to be used again.
        assert recompute.pack(torch.zeros(1000)).source is None
    assert not recompute._known


def test_a_write_between_the_passes_is_refused():
    recompute = Recompute()
    x = torch.ones(3, requires_grad=True)
    with recompute.running():
        y = x * 1
        z = (y * y).sum()
        y.detach().add_(1)
        with pytest.raises(RuntimeError, match="changed by an inplace operation"):
            z.backward()
    x = torch.ones(3)
    y = x * 2
    recompute.remember(y, torch.neg, x)
    saved = recompute.pack(y)
    x.add_(1)
    with pytest.raises(RuntimeError, match="changed by an inplace operation"):
        recompute.unpack(saved)


def test_less_is_kept_and_all_of_it_is_let_go():
    sizes = []
    for fused in (False, True):
        model, _ = adapted()
        engine = Engine(model, Arrangement(fused=fused))
        packed = engine.pack(collate(rows(), 0))
        saved = Saved(engine.recompute)
        with engine.running(packed):
            with saved.watching(model):
                loss = loss_of(engine, packed)
            sizes.append(sum(saved.sizes(model).values()))
            loss.backward()
            assert not saved.sizes(model)
    tokens = packed.inputs["input_ids"].numel()
    # Of each layer what the activation makes and the product that `down` reads, and what the norms make, but for the
    # first one: what that reads nobody else keeps, and a number for each token.
    assert sizes[0] - sizes[1] >= tokens * (2 * 2 * 64 + 3 * 32 - 1) * 4


def test_nothing_keeps_a_pass_alive():
    model, _ = adapted()
    engine = Engine(model, Arrangement())
    packed = engine.pack(collate(rows(), 0))
    alive: list[weakref.ref[Any]] = []
    remember = Recompute.remember

    def watch(self: Recompute, made: Tensor, *rest: Any) -> None:
        remember(self, made, *rest)
        alive.append(weakref.ref(self._known[made.untyped_storage()._cdata][2]))

    gc.disable()
    try:
        for backward in (True, False):
            with pytest.MonkeyPatch.context() as patch, engine.running(packed):
                patch.setattr(Recompute, "remember", watch)
                loss = loss_of(engine, packed)
                if backward:
                    loss.backward()
                else:
                    assert sum(reference() is not None for reference in alive) >= 2 * 3
                del loss
                assert len(alive) == 5 + 2
                assert all(reference() is None for reference in alive)
            alive.clear()
    finally:
        gc.enable()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("second", ["nothing", "mlps", "layers"])
def test_recomputation_and_dropout_are_those_of_the_models_own_code(dropout: float, second: Any):
    result = []
    for fused in (False, True):
        model, adaptation = adapted(dropout=dropout)
        recompute(model, second)
        torch.manual_seed(11)
        result.append(passes(model, adaptation, fused))
    (loss, own), (other, mine) = result
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    for one, two in zip(own, mine, strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm()


def test_activations_may_wait_elsewhere():
    model, adaptation = adapted()
    _, expected = passes(model, adaptation, True)
    engine = Engine(model, Arrangement())
    packed = engine.pack(collate(rows(), 0))
    with engine.running(packed):
        with torch.autograd.graph.save_on_cpu():
            loss = loss_of(engine, packed)
        result = torch.autograd.grad(loss, [parameter for _, parameter in adaptation.parameters()])
    for one, other in zip(expected, result, strict=True):
        assert (one - other).norm() <= 1e-6 * one.norm()


NORMS = {f"model.layers.{layer}.{name}_layernorm" for layer in (0, 1) for name in ("input", "post_attention")}
NORMS |= {"model.norm"}
MLPS = {f"model.layers.{layer}.mlp" for layer in (0, 1)}


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("lora", {}, NORMS | MLPS),
        ("serial-adapter", {}, NORMS | MLPS),
        ("parallel-adapter", {}, NORMS),
        ("layernorm-tuning", {}, MLPS),
        ("full", {}, MLPS),
    ],
)
def test_seats_and_trained_norms_run_their_own_code(method: str, options: dict[str, Any], expected: set[str]):
    model, adaptation = adapted(method, **options)
    result = FusedModules(model)
    names = {path for path in replaced(model, result) if ".seated" not in path}
    assert names == expected
    assert not [path for path in names if isinstance(model.get_submodule(path), Seat)]
    assert not [path for path, module in model.named_modules() if "forward" in module.__dict__]
    own, mine = (passes(model, adaptation, fused) for fused in (False, True))
    for one, other in zip(own[1], mine[1], strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-9


def test_a_pass_that_fails_or_wants_no_gradients_leaves_the_model_as_it_was():
    model, own = tiny("llama").requires_grad_(False), modeling_llama.apply_rotary_pos_emb
    result = FusedModules(model)

    def fail() -> None:
        with result.running():
            assert modeling_llama.apply_rotary_pos_emb is not own
            assert "forward" in model.model.norm.__dict__
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with torch.no_grad(), result.running():
        assert modeling_llama.apply_rotary_pos_emb is own
        assert not replaced(model, result)
    assert modeling_llama.apply_rotary_pos_emb is own
    assert not [path for path, module in model.named_modules() if "forward" in module.__dict__]


class Root(nn.Module):
    """A norm of the root mean square, with variations."""

    def __init__(self, kind: str):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(32) + 0.5, requires_grad=False)
        self.eps, self.kind = 1e-3, kind

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        if self.kind == "centred":
            x = x - x.mean(-1, keepdim=True)
        root = x.square().mean(-1, keepdim=True).sqrt() + self.eps if self.kind == "outside" else None
        root = (x.square().mean(-1, keepdim=True) + self.eps).sqrt() if root is None else root
        return x / root * (2 * self.weight if self.kind == "doubled" else self.weight)


@pytest.mark.parametrize(
    ("kind", "is_one"), [("plain", True), ("centred", False), ("outside", False), ("doubled", False)]
)
def test_norms_are_told_by_what_they_compute(kind: str, is_one: bool):
    module = Root(kind)
    assert bool(fused_modules._norms(Kinds(), [module])) == is_one
    module.weight.data.fill_(1)
    assert bool(fused_modules._norms(Kinds(), [module])) == is_one, "what the weights are does not matter"
    assert not fused_modules._norms(Kinds(), [nn.LayerNorm(32)])


def test_a_norm_of_no_weights_that_can_be_read_is_tried_all_the_same():
    assert len(fused_modules._norms(Kinds(), [Root("plain").to("meta")])) == 1


def clamped(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=0.1) * self.up_proj(x))


def thinned(self: Any, x: Tensor) -> Tensor:
    product = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
    return self.down_proj(nn.functional.dropout(product, 0.5, self.training))


@pytest.mark.parametrize("forward", [clamped, thinned])
def test_other_feed_forward_parts_keep_their_own_code(forward: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch):
    model = tiny("llama")
    assert len(FusedModules(model).gated) == 2
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", forward)
    assert not FusedModules(model).gated


def test_what_is_called_in_another_way_runs_its_own_code(monkeypatch: pytest.MonkeyPatch):
    model = tiny("llama").requires_grad_(False)
    layer, result = model.model.layers[0], FusedModules(model)
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    expected = layer.input_layernorm(x), layer.mlp(x)
    monkeypatch.delattr(fused_modules, "norm")
    monkeypatch.delattr(fused_modules, "gated")
    with result.running():
        assert torch.equal(layer.input_layernorm(hidden_states=x), expected[0])
        assert torch.equal(layer.mlp(x=x), expected[1])
        assert layer.input_layernorm(x.double()).dtype == torch.float64
        with pytest.raises(NameError):
            layer.mlp(x)


def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turn(x: Tensor) -> Tensor:
        other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos.unsqueeze(1) + other * sin.unsqueeze(1)

    return turn(q), turn(k)


def test_another_rotation_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    assert not FusedModules(tiny("llama")).rotary


def test_an_activation_that_hooks_hear_of_runs_as_it_does():
    model = tiny("llama").requires_grad_(False)
    result = FusedModules(model)
    with watched(model, lambda path: None, lambda: None):
        assert replaced(model, result) == NORMS | MLPS, "watching changes what is watched"
    model.model.layers[0].mlp.act_fn.register_forward_hook(lambda module, args, output: output * 2)
    assert replaced(model, result) == NORMS | (MLPS - {"model.layers.0.mlp"})


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(approximate="tanh"), nn.ReLU(), nn.Tanh()])
def test_functions_have_the_derivatives_that_differences_tell(activation: nn.Module):
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(3, 8, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    factor = torch.randn(8, generator=draw, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: norm(Recompute(), x, factor, 1e-2), x)
    assert torch.autograd.gradcheck(lambda x, y: gated(Recompute(), x, y, activation), (x, y))
    turn = lambda x: fused_modules.rotated(x, factor, factor.cos())  # noqa: E731
    assert torch.autograd.gradcheck(turn, x)


def test_a_recipe_may_say_no_and_compiled_blocks_do():
    assert arrangement_of(TrainSection()).fused
    assert not arrangement_of(TrainSection(fused_elementwise=False)).fused
    model, own = tiny("llama"), modeling_llama.apply_rotary_pos_emb
    engine = Engine(model, Arrangement())
    with engine.fused():
        assert modeling_llama.apply_rotary_pos_emb is not own
    engine.compiled = True
    with engine.fused():
        assert modeling_llama.apply_rotary_pos_emb is own


@pytest.mark.parametrize("together", [True, False])
def test_layers_that_read_the_same_input_read_what_is_made_again(together: bool):
    result = []
    for fused in (False, True):
        model, adaptation = adapted()
        engine, notices = choose(model, rows(), 0, CPU, Arrangement(fused=fused, together=together))
        assert not notices
        assert bool(engine.groups) == together
        packed = engine.pack(collate(rows(), 0))
        with engine.running(packed):
            loss = loss_of(engine, packed)
            wanted = [parameter for _, parameter in adaptation.parameters()]
            result.append([loss.detach(), *torch.autograd.grad(loss, wanted)])
    for one, other in zip(*result, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_evaluation_is_by_the_models_own_code():
    losses = []
    for fused in (False, True):
        model, adaptation = adapted()
        batches = Batches(rows(), batch_examples=3, seed=0)
        engine = Engine(model, Arrangement(fused=fused))
        loop = make_loop(engine, adaptation, batches, TrainSection(max_steps=1), pad_id=0, device=CPU)
        losses.append(loop.evaluate(batches))
    assert losses[0] == losses[1]
