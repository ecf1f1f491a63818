"""What of the engine would compute something else than the model is found before a run, and left off with a line."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from losses import loss_of, plain_loss
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

import zoo
from peftkit.adaptation import attach
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine import proof
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.engine.head import Head
from peftkit.engine.proof import Draw, same
from peftkit.method import METHODS
from peftkit.models.tiny import tiny
from peftkit.ports import attention_along

CPU = torch.device("cpu")


def rows(count: int = 4, beginning: int = 9) -> list[Encoded]:
    """Return rows of unequal length, of which two begin alike."""
    draw = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, 96, (9 + 4 * number,), generator=draw).tolist() for number in range(count)]
    ids[1][:beginning] = ids[0][:beginning]
    return [Encoded(row, [-100] * 4 + row[4:]) for row in ids]


def adapted(model: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    """Return the model with LoRA away from its start, and what is trained."""
    adaptation = attach(model, [METHODS["lora"].from_options({"targets": "linear", "rank": 2, **options})], seed=1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return model, [parameter for _, parameter in adaptation.parameters()]


def derived(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Return a loss and the gradients of the parameters."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(g if g is not None else torch.zeros(()) for g in gradients)]


def chosen(model: nn.Module, parameters: list[Tensor]) -> tuple[Engine, list[str]]:
    """Return the engine that is chosen for a model, once its loss and gradients are the model's own; and notices."""
    engine, notices = choose(model, rows(), 0, CPU, Arrangement())
    batch = collate(rows(), 0)
    packed = engine.pack(batch)
    with engine.running(packed):
        mine = derived(loss_of(engine, packed), parameters)
    own = derived(plain_loss(model, batch), parameters)
    assert mine[0].item() == pytest.approx(own[0].item(), rel=1e-6)
    for one, other in zip(mine, own, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9
    return engine, notices


def changed(model: Any, forward: Callable[..., Any]) -> Any:
    """Have a model run `forward(own, model, **inputs)` in the place of its `own` forward."""
    kind = type(model)
    model.__class__ = type(
        kind.__name__, (kind,), {"forward": lambda self, **named: forward(kind.forward, self, **named)}
    )
    return model


def scaling(own: Any, model: Any, **inputs: Any) -> Any:
    body = model.model(input_ids=inputs["input_ids"], attention_mask=inputs.get("attention_mask"), use_cache=False)
    return SimpleNamespace(logits=model.lm_head(body.last_hidden_state / 3))


def capping(own: Any, model: Any, **inputs: Any) -> Any:
    output = own(model, **inputs)
    output.logits = 2 * torch.tanh(output.logits / 2)
    return output


def barely(own: Any, model: Any, **inputs: Any) -> Any:
    output = own(model, **inputs)
    output.logits = output.logits * (1 + 1e-4)
    return output


def shifting(own: Any, model: Any, **inputs: Any) -> Any:
    """Compute the same values with another derivative of the hidden states."""
    output = own(model, **inputs)
    output.logits = output.logits.detach() + (output.logits - output.logits.detach()) * 2
    return output


@pytest.mark.parametrize("forward", [scaling, capping, barely, shifting])
def test_a_head_that_is_more_than_its_layer_is_run_as_the_model_runs_it(forward: Any):
    model, parameters = adapted(changed(tiny("llama"), forward))
    head = Head(model)
    assert head.refusal is None
    assert head.plain() is None
    engine, notices = chosen(model, parameters)
    assert engine.arrangement == Arrangement()
    assert notices == []
    assert Head(tiny("llama").requires_grad_(False)).plain() is not None


def masking(own: Any, model: Any, **inputs: Any) -> Any:
    output = own(model, **inputs)
    output.logits = output.logits * (2 if inputs.get("attention_mask") is not None else 1)
    return output


def embedding(own: Any, model: Any, **inputs: Any) -> Any:
    ids = inputs.pop("input_ids")
    return own(model, inputs_embeds=model.model.embed_tokens(ids) * 2, **inputs)


def reading(own: Any, model: Any, **inputs: Any) -> Any:
    """Give the tokens of the text a part in its logits, past the body."""
    output = own(model, **inputs)
    output.logits = output.logits + inputs["input_ids"][..., None]
    return output


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("forward", [masking, embedding, reading])
def test_a_head_that_cannot_stand_apart_leaves_the_model_whole(forward: Any, device: str):
    model, parameters = adapted(changed(tiny("llama"), forward))
    engine = Engine(model.to(device), Arrangement())
    assert not engine.arrangement.apart
    assert "logits of whole micro-batches" in engine.notices[0]
    if device == "cpu":
        assert chosen(model, parameters)[1] == engine.notices


def test_outputs_of_any_form_are_taken_apart():
    model = changed(tiny("llama"), lambda own, model, **inputs: (model.lm_head(model.model(**inputs)[0]),))
    body = type(model.model)

    def forward(self: Any, **named: Any) -> tuple[Tensor]:
        return (body.forward(self, **named).last_hidden_state,)

    model.model.__class__ = type("Tuples", (body,), {"forward": forward})
    head, ids = Head(model), torch.arange(3, 13)[None]
    assert head.refusal is None
    assert head.plain() is None, "it is trained"
    assert torch.equal(head.logits(head.hidden(input_ids=ids)[0]), model(input_ids=ids)[0][0])


@pytest.mark.parametrize("family", ["minicpm3", "llama4_text", "modernbert-decoder", "rwkv"])
def test_plans_decide_as_runs_do(family: str):
    held_alike(family)


@pytest.mark.thorough
@pytest.mark.parametrize("family", zoo.families())
def test_plans_of_all_families_decide_as_runs_do(family: str):
    held_alike(family)


def held_alike(family: str) -> None:
    """Hold that a model on the meta device is taken apart and stood in for as it is with weights."""
    try:
        model = zoo.build(family)
    except Exception as error:
        pytest.skip(f"no tiny model: {error}")
    seen = []
    for device in ("cpu", "meta"):
        engine = Engine(model.to(device).requires_grad_(False), Arrangement())
        fused = engine.fused_modules
        assert fused is not None
        places = tuple(len(each) for each in (fused.norms, fused.gated, fused.rotary))
        head = engine.head
        parts = None if head is None else (head.plain() is not None, type(head.bodies[0]))
        seen.append((engine.arrangement, engine.notices, parts, places))
    assert seen[0] == seen[1]
    assert seen[0][0].apart


class NudgedRMSNorm(modeling_llama.LlamaRMSNorm):
    """A norm that adds another number than it says to the mean square."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        squares = hidden_states.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(squares + 2 * self.variance_epsilon))


def test_a_norm_with_another_epsilon_keeps_its_own_code():
    model = tiny("llama")
    for module in list(model.modules()):
        if type(module) is modeling_llama.LlamaRMSNorm:
            module.__class__ = NudgedRMSNorm
    engine, notices = chosen(*adapted(model))
    assert engine.fused_modules is not None
    assert not engine.fused_modules.norms
    assert notices == ["the model's own code runs where ours computes something else: NudgedRMSNorm."]


def test_attention_that_is_off_on_packed_rows_pads_them(monkeypatch: pytest.MonkeyPatch):
    model, parameters = adapted(tiny("llama"))
    assert chosen(model, parameters)[0].arrangement.flat
    own = attention_along.attend
    monkeypatch.setattr(
        attention_along, "attend", lambda *args, scale, **named: own(*args, scale=scale * 1.0001, **named)
    )
    engine, notices = chosen(model, parameters)
    assert engine.arrangement == Arrangement(flat=False)
    assert notices == ["examples are padded, not packed: LlamaAttention attends in another way."]


def test_a_window_that_is_left_out_on_packed_rows_pads_them(monkeypatch: pytest.MonkeyPatch):
    """The rows are shorter than the window, so that their logits do not tell."""
    model, parameters = adapted(tiny("mistral", sliding_window=64))
    own = attention_along.plan_of
    monkeypatch.setattr(attention_along, "plan_of", lambda tree, window: own(tree, None))
    engine, _ = chosen(model, parameters)
    assert not engine.arrangement.flat


def test_layers_of_one_input_that_are_off_run_one_by_one(monkeypatch: pytest.MonkeyPatch):
    model, parameters = adapted(tiny("llama"))
    assert len(chosen(model, parameters)[0].groups) == 4
    own = proof.linears_with_pairs
    monkeypatch.setattr(proof, "linears_with_pairs", lambda x, *rest: own(x * 1.0001, *rest))
    engine, notices = chosen(model, parameters)
    assert not engine.groups
    assert notices == ["the model's own code runs where ours computes something else: layers of one input."]


def test_agreement_is_that_of_values_and_of_all_gradients():
    draw = Draw()
    x, y = draw(3, 8), draw(3, 8)
    assert same(lambda x, y: x * y + x, lambda x, y: x * (y + 1), x, y)
    assert not same(lambda x, y: x * y, lambda x, y: x * y * (1 + 1e-5), x, y)
    assert not same(lambda x, y: x * y, lambda x, y: x.detach() * y + 0 * x, x, y)
    assert not same(lambda x, y: x * y, lambda x, y: (x * y).double(), x, y)
    assert not same(lambda x, y: x * y, lambda x, y: x @ y, x, y), "what fails is no agreement"
    rough = [x.bfloat16(), y.bfloat16()]
    assert same(lambda x, y: x * y, lambda x, y: (x.float() * y.float()).bfloat16(), *rough)
    assert not same(lambda x, y: x * y, lambda x, y: x * y * 1.05, *rough)


def test_scores_that_are_not_scaled_make_the_roundings_and_not_the_functions():
    """Gemma 4's gradients lie far from those in fp64, by its own code as far as by ours: its scores have no scale."""
    family, far = "gemma4_text", {}
    exact = gradient(family, Arrangement(fused=False), torch.float64)
    for fused in (False, True):
        mine = gradient(family, Arrangement(fused=fused), torch.float32)
        far[fused] = ((mine.double() - exact).norm() / exact.norm()).item()
    assert far[True] < 4 * far[False]
    assert far[False] > 1e-6
    exact, *others = (
        gradient(family, Arrangement(fused=fused), dtype, scale=8**-0.5)
        for fused, dtype in ((False, torch.float64), (False, torch.float32), (True, torch.float32))
    )
    assert all((other.double() - exact).norm() < far[False] * exact.norm() for other in others)


def gradient(family: str, arrangement: Arrangement, dtype: torch.dtype, scale: float | None = None) -> Tensor:
    """Return the gradient of all that LoRA trains, norms in this dtype and attention with another `scale`."""
    model, parameters = adapted(zoo.build(family))
    for layer in model.model.layers:
        layer.self_attn.scaling = layer.self_attn.scaling if scale is None else scale
    model.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(Tensor, "float", Tensor.double)
        engine, batch = Engine(model, arrangement), collate(rows(), 0)
        packed = engine.pack(batch)
        with engine.running(packed):
            gradients = derived(loss_of(engine, packed), parameters)[1:]
    return torch.cat([each.flatten() for each in gradients])
