"""Shifted sparse attention against plain loops over heads, groups and tokens: in training alone, and never ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses import loss_of
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from peftkit.adaptation import Adaptation, attach, check_methods
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine
from peftkit.errors import PeftkitError
from peftkit.kernels.tree import cut, grow
from peftkit.method import METHODS
from peftkit.models.tiny import tiny

LENGTH = 13
IDS = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def randomise(adaptation: Adaptation) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def reference(group: int, shifts: tuple[bool, bool] = (False, True)) -> str:
    """Register attention as the paper has it, with the wrapped group cut: a loop over heads and tokens."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **rest: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        y = torch.zeros_like(q)
        for head in range(q.shape[1]):
            moved = (group + 1) // 2 if shifts[head >= q.shape[1] // 2] else 0
            for i in range(q.shape[2]):
                seen = [j for j in range(i + 1) if (j - moved) // group == (i - moved) // group]
                p = (q[:, head, i, None] @ k[:, head, seen].transpose(1, 2) * scaling).softmax(-1)
                y[:, head, i] = (p @ v[:, head, seen])[:, 0]
        return y.transpose(1, 2), None

    name = f"reference-{group}-{shifts}"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, sdpa_mask)
    return name


def trained(group: int, architecture: str = "llama", of: Any = "lora", **keys: Any) -> tuple[Any, Any]:
    model = tiny(architecture, **keys)
    adaptation = attach(model, [METHODS["s2-attn"].from_options({"group": group, "of": of})])
    randomise(adaptation)
    return model.train(), adaptation


def expected(group: int, architecture: str = "llama", **keys: Any) -> Tensor:
    model = tiny(architecture)
    randomise(attach(model, [METHODS["lora"].from_options({})]))
    model.set_attn_implementation(reference(group, **keys))
    return logits(model, IDS)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("group", [2, 4, 5, 13, 20])
def test_it_is_the_loop(architecture: str, group: int):
    """The last group is short where the length is no multiple of it; keys and values may be of several heads."""
    model, _ = trained(group, architecture)
    torch.testing.assert_close(logits(model, IDS), expected(group, architecture), atol=1e-5, rtol=1e-5)


def test_a_group_of_the_whole_length_leaves_the_first_half_full_attention():
    """The two halves are told apart by the output of attention: of the first it is that of the base, head by head."""
    outputs = {}
    for name, training in (("all", False), ("grouped", True)):
        model, _ = trained(LENGTH)
        model.train(training)
        model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda m, given, name=name: outputs.update({name: given[0].unflatten(-1, (4, -1))})
        )
        logits(model, IDS)
    torch.testing.assert_close(outputs["grouped"][:, :, :2], outputs["all"][:, :, :2])
    late = (LENGTH + 1) // 2
    torch.testing.assert_close(outputs["grouped"][:, :late, 2:], outputs["all"][:, :late, 2:])
    assert (outputs["grouped"][:, late:, 2:] - outputs["all"][:, late:, 2:]).abs().max() > 1e-3


def test_rows_of_half_a_group_train_as_without_it_bit_for_bit():
    model, _ = trained(2 * LENGTH)
    plain = tiny("llama")
    randomise(attach(plain, [METHODS["lora"].from_options({})]))
    assert torch.equal(logits(model, IDS), logits(plain, IDS))


def test_no_token_sees_a_later_one():
    """Neither outputs nor gradients of early tokens know the last one, which the rolled group of the paper has them."""
    model, _ = trained(4)
    model.config.use_cache = False
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 7) % 90 + 3
    assert torch.equal(logits(model, IDS)[:, :-1], logits(model, changed)[:, :-1])
    embedded = model.model.embed_tokens(IDS).detach().requires_grad_()
    for at in range(LENGTH):
        (gradient,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[:, at].sum(), embedded)
        assert not gradient[:, at + 1 :].any()
        assert gradient[:, at].any()


@pytest.mark.parametrize("of", ["lora", {"p-tuning-v2": {"length": 3}}, "llama-adapter"])
def test_evaluation_and_generation_know_nothing_of_it(of: Any):
    model, _ = trained(4, of=of)
    grouped = logits(model, IDS)
    ((name, options),) = {of: {}}.items() if isinstance(of, str) else of.items()
    plain = tiny("llama")
    randomise(attach(plain, [METHODS[name].from_options(options)]))
    model.eval()
    torch.testing.assert_close(logits(model, IDS), logits(plain, IDS), atol=1e-6, rtol=1e-6)
    assert (grouped - logits(plain, IDS)).abs().max() > 1e-3
    asked = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(IDS, **asked), plain.generate(IDS, **asked))


ROWS = [[*range(3, 25)], [*range(3, 15), 40, 41, 42, 43, 44, 45], [50, 51, 52, 53, 54], [60] * 17]


@pytest.mark.parametrize("of", ["lora", {"p-tuning-v2": {"length": 3}}, "prompt-tuning", "unipelt"])
@pytest.mark.parametrize(("architecture", "keys"), [("llama", {}), ("gpt2", {}), ("mistral", {"sliding_window": 5})])
def test_packed_rows_are_those_alone(architecture: str, keys: dict[str, Any], of: Any):
    """Rows that share a beginning, padded rows and each row alone have one loss and one gradient."""
    found = []
    for arrangement, apart in (
        (Arrangement(), False),
        (Arrangement(flat=False), False),
        (Arrangement(flat=False), True),
    ):
        model, adaptation = trained(6, architecture, of, **keys)
        soft = list(adaptation.soft_ids)
        given = [Encoded([*soft, *ids], [-100] * len(soft) + [-100, *ids[1:]]) for ids in ROWS]
        loss = 0.0
        engine = Engine(model, arrangement)
        for batch in [[row] for row in given] if apart else [given]:
            packed = engine.pack(collate(batch, 0))
            assert (packed.tree is not None) == arrangement.flat
            with engine.running(packed):
                one = loss_of(engine, packed)
                one.backward()
            loss += one.item()
        found.append((loss, {key: p.grad for key, p in adaptation.parameters()}))
    for loss, gradients in found[:2]:
        assert loss == pytest.approx(found[2][0], rel=1e-5)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[2][1][key], atol=1e-4, rtol=1e-4)


def test_a_cut_tree_has_the_spans_of_every_path():
    """A path of 300 tokens is computed in blocks of 256, which are cut where spans end."""
    tree = grow([[*range(300)], [*range(20), *range(500, 510)]])
    for length, first in ((64, 0), (64, 32), (7, 4), (1000, 0)):
        seen = {
            block.start + at: block.keys[: len(block.keys) - block.length + at + 1].tolist()
            for block in cut(tree, length, first).blocks
            for at in range(block.length)
        }
        for row in tree.rows:
            for i, place in enumerate(row):
                span = [(j - first) // length if j >= first else -1 for j in range(i + 1)]
                assert seen[place] == [int(row[j]) for j in range(i + 1) if span[j] == span[i]]
        assert len(seen) == len(tree.ids)
    assert cut(tree, 64) is cut(tree, 64)


def test_what_stands_in_the_model_s_own_code_and_what_trains_a_stored_base_is_refused():
    with pytest.raises(PeftkitError, match="s2-attn: this bloom model computes attention in code of its own"):
        check_methods(tiny("bloom"), [METHODS["s2-attn"].from_options({})])
    with pytest.raises(PeftkitError, match="s2-attn: of: the method 'peqa' trains a stored base"):
        METHODS["s2-attn"].from_options({"of": "peqa"})
    with pytest.raises(PeftkitError, match="group"):
        METHODS["s2-attn"].from_options({"group": 1})


def test_it_merges_as_what_is_trained_and_says_so():
    model, adaptation = trained(4)
    model.eval()
    adapted = logits(model, IDS)
    adaptation.merge_()
    torch.testing.assert_close(logits(model, IDS), adapted, atol=1e-4, rtol=1e-4)
    adaptation.unmerge_()
    assert torch.equal(logits(model, IDS), adapted)
    model, adaptation = trained(4, of="pfeiffer-adapter")
    assert "'pfeiffer-adapter' cannot be merged" in str(adaptation.unmergeable())
