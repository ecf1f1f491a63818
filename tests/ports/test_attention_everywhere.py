"""Adapters inside attention, on models whose layers ask their attention for what others do not."""

from __future__ import annotations

import pytest
import torch
from attention_references import IDS, MASK, REAL, written_out
from model_folders import byte_tokenizer

import zoo
from peftkit import recipe as recipes
from peftkit.adaptation import attach, load_adapter, save_adapter
from peftkit.assembly import assemble
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded
from peftkit.engine.engine import Arrangement, Engine, choose
from peftkit.errors import PeftkitError
from peftkit.families.attention import attentions
from peftkit.layout import Layout
from peftkit.methods.llama_adapter import LlamaAdapter
from peftkit.methods.p_tuning_v2 import PTuningV2
from peftkit.methods.prefix_tuning import PrefixTuning
from peftkit.methods.unipelt import GatedPrefixTuning
from peftkit.quantization.weight import shape

FEW = ("gemma2", "gpt_oss", "deepseek_v3", "gemma4_text", "lfm2_moe")
"""Soft caps, sinks, keys and values of other sizes, layers of other sizes, layers without attention."""
SPARSE = {name: {"index_topk": 4} for name in ("axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4")}
"""So few keys are looked at that it shows."""
WITHOUT = {"falcon_mamba", "mamba", "mamba2", "openai-gpt", "rwkv", "xlnet", "xlstm"}
"""No attention, or none that goes through the registry or fills a cache."""
NOT_CAUSAL = {"bert-generation", "cpmant"}
METHODS = (
    PTuningV2(length=3, deviation=0.7),
    PrefixTuning(length=3, projection=8),
    GatedPrefixTuning(length=3, projection=8),
    LlamaAdapter(length=3),
)


def families(few):
    """All families that can be made, of which some are in `make test`."""
    every = [name for name in zoo.families() if name not in WITHOUT]
    return [pytest.param(name, marks=() if name in few else pytest.mark.thorough) for name in every]


def build(name):
    try:
        return zoo.build(name, **SPARSE.get(name, {}))
    except Exception as error:  # what cannot be made is the zoo's to tell
        pytest.skip(str(error))


def run(model, **rest):
    return model(input_ids=IDS, attention_mask=MASK, use_cache=False, **rest).logits


def near(one, other, scale):
    assert (one - other)[REAL].abs().max() <= 2e-5 * max(1.0, float(scale.abs().max()))


@pytest.mark.parametrize("name", families(FEW))
def test_a_prefix_is_attended_to_as_written_out(name):
    """Caps, sinks, windows, biases and chosen keys hold for the text; the prefix is seen by all."""
    bare, model = build(name), build(name)
    adaptation = attach(model, [METHODS[0]])
    adapters = adaptation.parts[0].adapters
    if next(iter(adapters.values())).site.heads.own or name in NOT_CAUSAL:
        pytest.skip("its own code attends: tests/ports/test_own_attention.py")
    with torch.no_grad():
        base, prefixed = run(bare), run(model)
        with written_out(bare, {}):
            near(run(bare), base, base)
        with written_out(bare, {path: (adapter.K, adapter.V) for path, adapter in adapters.items()}):
            near(prefixed, run(bare), base)
        assert (prefixed - base)[REAL].abs().max() > 1e-2
        for adapter in adapters.values():
            adapter.K, adapter.V = (torch.nn.Parameter(part[:0]) for part in (adapter.K, adapter.V))
        near(run(model), base, base)
        with adaptation.disabled():
            near(run(model), base, base)


@pytest.mark.parametrize("name", families((*FEW, "falcon")))
def test_every_method_learns_and_is_kept(name, tmp_path):
    """Gradients reach every tensor, and what is saved gives the same logits."""
    model = build(name)
    for number, method in enumerate(METHODS):
        adaptation = attach(model, [method])
        for adapter in adaptation.adapters():
            if hasattr(adapter, "g"):
                torch.nn.init.constant_(adapter.g, 0.5)
        logits = run(model)[REAL]
        logits.square().mean().backward()
        for key, parameter in adaptation.parameters():
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key
        adaptation.finish()
        with torch.no_grad():
            before = run(model)
        if method.name in {"p-tuning-v2", "prefix-tuning", "llama-adapter"}:
            save_adapter(adaptation, tmp_path / f"{number}", {"name": name})
            adaptation.remove()
            load_adapter(model, tmp_path / f"{number}", None)
            with torch.no_grad():
                near(run(model), before, before)
            model = build(name)
        else:
            adaptation.remove()


@pytest.mark.parametrize("name", families(("gpt_oss", "gemma2")))
def test_packed_rows_have_the_gradients_of_padded_ones(name):
    """Where they can be packed; else it is told."""
    model = build(name).double() if name.startswith(("gemma4", "minicpm")) else build(name)
    adaptation = attach(model, [METHODS[0]])
    rows = [Encoded(ids, ids) for ids in (list(range(20, 40)), list(range(20, 33)) + [7, 8], [9, 90, 12, 13])]
    engine, notices = choose(model, rows, 0, torch.device("cpu"), Arrangement())
    if not engine.arrangement.flat:
        assert len([notice for notice in notices if "padded, not packed" in notice]) == 1
        return
    found = []
    for flat in (True, False):
        engine = Engine(model, Arrangement(flat=flat))
        batch = engine.pack(collate(rows, 0)).to(torch.device("cpu"))
        with engine.running(batch):
            losses = torch.nn.functional.cross_entropy(engine.logits(batch), batch.targets, reduction="none")
            (losses if batch.weights is None else losses * batch.weights).sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for _, parameter in adaptation.parameters()]))
        model.zero_grad()
    assert (found[0] - found[1]).abs().max() <= 2e-5 * found[1].abs().max()


@pytest.mark.parametrize("name", families(("jetmoe",)))
def test_sizes_are_known_without_weights(name):
    model = build(name)
    with torch.device("meta"):
        outline = type(model)._from_config(model.config)
    sizes, without = ([(site.id, site.heads) for site in Layout(each).attention()] for each in (model, outline))
    assert sizes == without


@pytest.mark.parametrize("name", ["falcon", "minicpm3"])
def test_sizes_are_known_of_packed_weights_that_are_not_there(name, tmp_path):
    build(name).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    recipe = recipes.load(
        {"model": str(tmp_path), "method": "prefix-tuning", "quantization": {"format": "nf4"}, "dataset": "e2e"}
    )
    outline = assemble(recipe, weights=False).adaptation
    sizes = [(adapter.site.id, adapter.site.heads) for adapter in outline.adapters()]
    assert sizes == [(site.id, site.heads) for site in Layout(build(name)).attention()]


@pytest.mark.parametrize("name", families((*FEW, "llama")))
def test_sizes_of_the_roles_are_those_of_the_attention(name):
    layout = Layout(build(name))
    observed = attentions(layout.model, lambda path: None, shape)
    for site in layout.attention():
        assert (site.heads.keys, site.heads.values) == (observed[site.path].keys, observed[site.path].values)


def test_a_model_without_attention_is_refused():
    with pytest.raises(PeftkitError, match="has no attention"):
        attach(zoo.build("mamba"), [PrefixTuning()])


def test_layers_without_attention_take_no_prefix():
    model = zoo.build("lfm2_moe")
    adaptation = attach(model, [METHODS[0]])
    kinds = [model.config.layer_types[adapter.site.layer] for adapter in adaptation.adapters()]
    assert kinds == ["full_attention"] * 2
    with pytest.raises(PeftkitError, match="no layer of those that are chosen has attention"):
        attach(zoo.build("lfm2_moe"), [PTuningV2(layers=(0,))])


def test_a_layer_that_shares_keys_has_no_prompt_of_its_own():
    model = zoo.build("gemma3n_text")
    assert len(list(attach(model, [LlamaAdapter(length=3)]).adapters())) == 3
    assert len(list(attach(model, [PTuningV2(length=3)], "other").adapters())) == 4
