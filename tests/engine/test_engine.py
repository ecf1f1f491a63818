"""Every switch of the engine on equals it off over a run of training, and models that cannot are named."""

from __future__ import annotations

import pytest
import torch
from draw import thorough
from losses import loss_of, plain_loss
from storages import stored
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from peftkit.adaptation import attach
from peftkit.data.batches import Batches, collate
from peftkit.data.encode import Encoded, insert
from peftkit.engine.engine import Arrangement, Engine, choose, possible, refusal
from peftkit.method import METHODS
from peftkit.models.tiny import ARCHITECTURES, tiny
from peftkit.recipe import TrainSection
from peftkit.training.nesting import make_loop

CPU = torch.device("cpu")
METHODS_HELD = ["lora", "dora", "prefix-tuning", "prompt-tuning", "ia3", "serial-adapter", "bitfit", "full"]
SWITCHES = [
    Arrangement(),
    Arrangement(share=False),
    Arrangement(together=False),
    Arrangement(flat=False),
    Arrangement(fused=False),
    Arrangement(flat=False, share=False, apart=False, fused=False),
]


def examples(count: int = 24) -> list[Encoded]:
    """Examples of unequal length; every third one begins as the one before it."""
    generator = torch.Generator().manual_seed(5)
    result: list[Encoded] = []
    for number in range(count):
        ids = torch.randint(3, 96, (6 + 5 * number % 17,), generator=generator).tolist()
        if number % 3 == 2:
            ids = result[-1].ids[:10] + ids
        result.append(Encoded(ids, [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]))
    return result


def losses(method: str, layout: Arrangement, steps: int = 50) -> list[float]:
    """Train a tiny model in one layout and return the losses."""
    architecture = "gpt2" if method == "bitfit" else "llama"
    model = stored([method], architecture)
    adaptation = attach(model, [METHODS[method].from_options({})], seed=1)
    given = [insert(row, adaptation.soft_ids, 0) for row in examples()]
    section = TrainSection(batch_examples=6, max_steps=steps, learning_rate=1e-3, schedule="constant")
    batches = Batches(given, batch_examples=6, seed=0)
    engine, notices = choose(model, given, 0, CPU, layout)
    assert not notices
    loop = make_loop(engine, adaptation, batches, section, pad_id=0, device=CPU)
    return [loop.run_step()["loss"] for _ in range(steps)]


@pytest.mark.parametrize("method", METHODS_HELD)
@pytest.mark.parametrize("steps", [12, thorough(50)])
def test_each_switch_on_equals_off_over_many_steps(method: str, steps: int):
    expected = losses(method, SWITCHES[-1], steps)
    assert sum(expected[-4:]) < sum(expected[:4])
    for layout in SWITCHES[:-1]:
        assert losses(method, layout, steps) == pytest.approx(expected, abs=1e-3), layout


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_families_are_packed_or_told_of(architecture: str):
    engine, notices = choose(tiny(architecture), examples(4), 0, CPU, Arrangement())
    assert engine.arrangement.apart
    assert engine.arrangement.flat == (not notices) == (architecture != "bloom")
    assert not notices or "bloom models compute attention in a way of their own" in notices[0]


@pytest.mark.parametrize("share", [True, False])
def test_a_sliding_window_is_that_of_the_model(share: bool):
    """Rows are longer than the window, and the window changes the loss: what a token sees ends inside its own row."""
    model = tiny("mistral", sliding_window=6)
    given = examples(9)
    batch = collate(given, 0)
    own = plain_loss(model, batch)
    assert own.item() != pytest.approx(plain_loss(tiny("mistral"), batch).item(), rel=1e-3)
    engine = Engine(model, Arrangement(share=share))
    packed = engine.pack(batch)
    with engine.running(packed):
        assert loss_of(engine, packed).item() == pytest.approx(own.item(), rel=1e-5)


def test_methods_that_draw_by_row_are_not_packed():
    model, lora = tiny("llama"), [METHODS["lora"].from_options({})]
    engine, notices = choose(model, examples(4), 0, CPU, Arrangement(), [METHODS["lora-dropout"].from_options({})])
    assert engine.arrangement == Arrangement(flat=False)
    assert "lora-dropout" in notices[0]
    assert possible(Arrangement(), model, [5], lora).flat
    assert not possible(Arrangement(flat=False), model, [5], lora).flat


def test_a_model_whose_tokens_see_those_behind_them_is_not_packed():
    encoder = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model("bert", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    assert "attend to those behind them" in (refusal(encoder, [10]) or "")
    assert refusal(tiny("llama"), [10]) is None


def test_layers_that_attend_otherwise_are_not_packed():
    model = tiny("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    assert "linear_attention" in (refusal(model, [10]) or "")
    model.config.layer_types = None
    model.config.attention_chunk_size = 8
    assert "chunks of 8 tokens" in (refusal(model, [4, 10]) or "")
    assert refusal(model, [4, 8]) is None


def test_a_model_that_mixes_tokens_by_order_is_found_out():
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)

    model = tiny("llama")
    model.model.layers[0].mlp = nn.Sequential(model.model.layers[0].mlp, Shift())
    engine, notices = choose(model, examples(4), 0, CPU, Arrangement())
    assert engine.arrangement == Arrangement(flat=False)
    assert "computes something else then" in notices[0]


def test_a_head_that_cannot_stand_apart_leaves_the_model_whole():
    model = tiny("llama")
    whole = type(model).forward

    class Odd(type(model)):
        def forward(self, *args: object, **kwargs: object) -> object:
            output = whole(self, *args, **kwargs)
            output.logits = output.logits * (2 if kwargs.get("attention_mask") is not None else 1)
            return output

    model.__class__ = Odd
    engine, notices = choose(model, examples(4), 0, CPU, Arrangement())
    assert not engine.arrangement.apart
    assert "logits of whole micro-batches" in notices[-1]


def test_probing_leaves_the_random_state_and_the_mode():
    model = tiny("llama").train()
    before = torch.get_rng_state()
    choose(model, examples(4), 0, CPU, Arrangement())
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
