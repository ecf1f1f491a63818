"""DePT by hand: which token gets which row of the change, and what it stores at the budget of prompt tuning."""

from __future__ import annotations

import pytest
import torch

from peftkit.adaptation import attach, check_methods, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.methods.dept import DePT
from peftkit.methods.prompt_tuning import PromptTuning
from peftkit.models.load import load
from peftkit.models.tiny import tiny
from peftkit.recipe import ModelSection

IDS = torch.tensor([[5, 9, 14, 20], [7, 7, 30, 41]])


def changed(adaptation, scale):
    """Return s A B by hand, once B is not zero any more."""
    tensors = {key.rpartition("/")[2]: tensor for key, tensor in adaptation.parameters()}
    with torch.no_grad():
        tensors["B"].normal_()
        return tensors["P"], scale * torch.stack(
            [sum(a * b for a, b in zip(r, tensors["B"], strict=True)) for r in tensors["A"]]
        )


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2"])
def test_each_token_gets_the_row_of_its_place_in_the_text(architecture):
    model = tiny(architecture)
    embedded = model.get_input_embeddings()(IDS).detach()
    adaptation = attach(model, [DePT(length=3, rank=4, positions=8, alpha=6.0)])
    prompt, change = changed(adaptation, 3.0)
    soft = torch.tensor([adaptation.soft_ids] * 2)
    with torch.no_grad():
        result = model(input_ids=torch.cat([soft, IDS], 1)).logits
        inputs = torch.cat([prompt.expand(2, -1, -1), embedded + change[:4]], 1)
        expected = tiny(architecture)(inputs_embeds=inputs).logits
    assert (result - expected).abs().max() <= 1e-5


def test_a_token_that_stands_before_the_prompt_is_the_first_of_its_text():
    model = tiny("llama")
    embedded = model.get_input_embeddings()(IDS).detach()
    adaptation = attach(model, [DePT(length=3, rank=4, positions=4, alpha=6.0)])
    prompt, change = changed(adaptation, 3.0)
    soft = torch.tensor([adaptation.soft_ids] * 2)
    text = embedded + change
    with torch.no_grad():
        result = model(input_ids=torch.cat([IDS[:, :1], soft, IDS[:, 1:]], 1)).logits
        inputs = torch.cat([text[:, :1], prompt.expand(2, -1, -1), text[:, 1:]], 1)
        expected = tiny("llama")(inputs_embeds=inputs).logits
    assert (result - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("length", "rank"), [(60, 30), (40, 45)])
def test_the_sizes_of_the_paper_store_what_a_prompt_of_100_does(length, rank):
    """T5-base is 768 wide, and its texts have 256 tokens: 60 and 30, or 40 and 45."""
    method = DePT(length=length, budget=100, positions=256)
    assert method.rank_for(768) == rank
    assert length * 768 + rank * (256 + 768) == 100 * 768


def test_as_it_comes_it_stores_what_prompt_tuning_does_on_the_bundled_model():
    layout = Layout(load(ModelSection(name="bundled/tiny"), device="meta", weights=False).model)
    assert count_trained(DePT(), layout) == count_trained(PromptTuning(), layout) == 20 * 192
    assert count_trained(DePT(budget=20), layout) == 20 * 192


def test_what_cannot_be_is_refused_with_what_can():
    with pytest.raises(PeftkitError, match=r"a budget of 20 rows leaves nothing .* set budget to at least 22"):
        check_methods(tiny("llama"), [DePT(budget=20)])
    check_methods(tiny("llama"), [DePT(budget=22)])
    model = tiny("llama")
    adaptation = attach(model, [DePT(length=2, positions=3)])
    soft = torch.tensor([adaptation.soft_ids] * 2)
    model(input_ids=torch.cat([soft, IDS[:, :3]], 1))
    with pytest.raises(PeftkitError, match="a text has 4 tokens, and 3 positions have a change: set positions"):
        model(input_ids=torch.cat([soft, IDS], 1))


def test_the_pair_has_a_rate_of_its_own():
    groups = attach(tiny("llama"), [DePT(ratio=0.25)]).groups(0.4, 0.0)
    assert [(group["keys"][0][-1], group["lr"]) for group in groups] == [("P", 0.4), ("A", 0.1)]
