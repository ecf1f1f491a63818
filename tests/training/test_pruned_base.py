"""Runs on a pruned base: any method trains on it, every command finds its zeros, and a merge says what it fills."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_recipe
from test_session import Stops, records

from peftkit import recipe
from peftkit.assembly import assemble
from peftkit.errors import PeftkitError
from peftkit.evaluation import answer
from peftkit.export import export, merge
from peftkit.layout import Layout
from peftkit.models.calibrated_folder import WEIGHTS
from peftkit.models.load import load as load_model
from peftkit.models.prune import filled
from peftkit.plan import plan
from peftkit.pruning import PRUNERS
from peftkit.quantization.weight import dense
from peftkit.recipe import BASE, ModelSection
from peftkit.tensor_file import read_tensors
from peftkit.training import Interrupted, session, train


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def load(folder: Path, pruning: Any = "wanda", *overrides: str, method: Any = "lora", **train: Any) -> recipe.Recipe:
    keys = make_recipe(folder, method, **{"max_steps": 6, "precision": "fp32", **train})
    return recipe.load({**keys, "pruning": pruning}, overrides)


def on_folder(folder: Path, pruning: Any, quantization: Any = "none", method: Any = "lora") -> recipe.Recipe:
    """Return a recipe whose model lies in files, as a merge rewrites them."""
    keys = make_recipe(folder, method, max_steps=3, precision="fp32")
    base = assemble(recipe.load(keys), bare=True)
    base.model.save_pretrained(folder / "base")
    base.tokenizer.save_pretrained(folder / "base")
    return recipe.load({**keys, "model": str(folder / "base"), "pruning": pruning, "quantization": quantization})


def zeros(model: Any) -> dict[str, int]:
    paths = {site.path for site in Layout(model).linears if site.layer is not None}
    return {path: int((dense(model.get_submodule(path)) == 0).sum()) for path in paths}


@pytest.mark.parametrize("name", PRUNERS.names())
def test_it_trains_as_planned_resumes_bit_for_bit_and_answers_without_its_data(name, tmp_path):
    chosen = load(tmp_path, {name: {"sparsity": 0.5}}, method=["lora", {"serial-adapter": {"bottleneck": 8}}])
    foretold = plan(chosen)
    summary = train(chosen, tmp_path / "whole")
    assert summary.losses["last"] < summary.losses["first"]
    assert (summary.trainable_parameters, summary.total_parameters) == (foretold.trainable, foretold.total)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    files = [(tmp_path / run / "adapter" / "adapter.safetensors").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]
    described = json.loads((tmp_path / "whole" / "adapter" / "adapter.json").read_text())["base"]["quantization"]
    assert described["pruning"][name]["sparsity"] == 0.5
    told = answer(tmp_path / "whole", "red")
    shutil.rmtree(tmp_path / "data")
    assert answer(tmp_path / "whole", "red") == told


@pytest.mark.parametrize("options", [{"sparsity": 0.25}, {"pattern": "2:4"}], ids=str)
@pytest.mark.parametrize("quantization", ["none", "int4", "gptq"])
def test_the_base_has_as_many_zeros_as_asked_for_in_every_storage(options, quantization, tmp_path):
    storage = "none" if quantization == "none" else {"format": quantization, "group_size": 16}
    keys = {**make_recipe(tmp_path, "lora"), "pruning": {"wanda": options}, "quantization": storage}
    base = assemble(recipe.load(keys), bare=True)
    share = 0.25 if "sparsity" in options else 0.5
    for path, count in zeros(base.module).items():
        size = dense(base.module.get_submodule(path)).numel()
        assert count == size * share if quantization == "none" else count >= size * share, path
    assert filled(base.module, base.masks) == 0


def test_a_format_without_a_zero_is_refused(tmp_path):
    keys = {**make_recipe(tmp_path, "lora"), "pruning": "wanda", "quantization": "bcq2"}
    with pytest.raises(PeftkitError, match=r"pruning: bcq2 .*has no zero, and pruned weights would not stay so"):
        assemble(recipe.load(keys), bare=True)


@pytest.mark.parametrize("method", ["lora", "ia3", {"fishmask": {"density": 0.01}}, "prefix-tuning"], ids=str)
def test_methods_of_every_kind_train_on_it(method, tmp_path):
    train(load(tmp_path, "magnitude", method=method, max_steps=2), tmp_path / "run")
    answer(tmp_path / "run", "red")


@pytest.mark.parametrize("quantization", ["none", {"format": "gptq", "group_size": 16}], ids=["dense", "gptq"])
@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_a_merge_says_what_it_fills_and_keeps_zeros_where_it_is_asked_to(quantization, into, tmp_path):
    if quantization == "none" and into == "dequantized":
        pytest.skip("nothing is quantized")
    chosen = on_folder(tmp_path, {"wanda": {"pattern": "2:4"}}, quantization)
    train(chosen, tmp_path / "run")
    report = merge(tmp_path / "run", tmp_path / "filled", into=into)
    whole = assemble(recipe.load_run(tmp_path / "run"), bare=True)
    adapted = [path for path in whole.masks if path.endswith(("q_proj", "v_proj"))]
    pruned = {path: dense(whole.module.get_submodule(path)).numel() // 2 for path in whole.masks}
    assert report["pruned_weights"] == sum(pruned.values())
    assert report["filled_weights"] == sum(pruned[path] for path in adapted)
    written = load_model(ModelSection(name=str(tmp_path / "filled"))).module
    # What the adapter does not touch lies in the folder as it was pruned, and not as in the base's own files.
    assert all(zeros(written)[path] >= pruned[path] for path in whole.masks if path not in adapted)
    assert all(zeros(written)[path] < pruned[path] for path in adapted)
    config = json.loads((tmp_path / "filled" / "config.json").read_text())
    assert config["peftkit_pruning"]["wanda"]["pattern"] == "2:4"
    assert config["peftkit_pruning"]["filled_weights"] == report["filled_weights"]
    report = merge(tmp_path / "run", tmp_path / "kept", into=into, keep_zeros=True)
    assert report["filled_weights"] == 0
    assert report["zeroed_weights"] == sum(pruned[path] for path in adapted)
    assert report["zeroed_max_difference"] > 0
    written = load_model(ModelSection(name=str(tmp_path / "kept"))).module
    assert filled(written, whole.masks) == 0
    assert report["max_difference"] <= report["bound"]


def test_what_would_be_opened_on_the_whole_base_is_refused(tmp_path):
    train(on_folder(tmp_path, "wanda"), tmp_path / "run")
    for form in ("hf-peft", "bitdelta"):
        with pytest.raises(PeftkitError, match=f"--format {form}: the adapter stands on a pruned base"):
            export(tmp_path / "run", tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
    train(load(tmp_path, None, max_steps=1), tmp_path / "plain")
    with pytest.raises(PeftkitError, match="--keep-zeros is for a run on a pruned base"):
        merge(tmp_path / "plain", tmp_path / "out", keep_zeros=True)


def test_the_zeros_of_a_run_are_those_of_another_or_refused(tmp_path):
    train(load(tmp_path, max_steps=2), tmp_path / "first")
    weights = f"calibration.weights={tmp_path / 'first'}"
    train(load(tmp_path, "wanda", weights, "train.seed=1", max_steps=2), tmp_path / "second")
    masks = [read_tensors(tmp_path / run / BASE / WEIGHTS) for run in ("first", "second")]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][key], masks[1][key]) for key in masks[0])
    with pytest.raises(PeftkitError, match=r"holds weights pruned as .*wanda.*and the recipe asks for .*magnitude"):
        train(load(tmp_path, "magnitude", weights, max_steps=2), tmp_path / "third")
    onward = f"adapter={tmp_path / 'first'}"
    with pytest.raises(PeftkitError, match=r"stored as none .*pruned by wanda.*and the model is loaded as none"):
        plan(load(tmp_path, None, onward, max_steps=2))


def test_the_plan_counts_what_pruning_takes(tmp_path):
    keys = make_recipe(tmp_path, "lora", max_steps=1)
    keys["model"]["init"] |= {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 2}
    found = plan(recipe.load({**keys, "pruning": "wanda"})).memory
    assert found.moment == "loading"
    assert found.peak - found.parts["process"] >= found.parts["weights"] + 16 * 512 * 4096


@pytest.mark.parametrize(
    ("pruning", "more", "told"),
    [
        ("wnada", {}, r"pruning: found 'wnada', which is no pruning; allowed: magnitude, wanda; did you mean 'wanda'"),
        ({"wanda": {"sparsty": 0.5}}, {}, r"pruning\.wanda\.sparsty: unknown key;.*did you mean 'sparsity'"),
        (
            {"wanda": {"sparsity": 1.5}},
            {},
            r"pruning\.wanda\.sparsity: found 1\.5.*allowed: a number from 0 and",
        ),
        ({"wanda": {"pattern": "4:2"}}, {}, r"pruning\.wanda\.pattern: found '4:2'; allowed: n:m"),
        (
            {"wanda": {"pattern": "2:4", "sparsity": 0.5}},
            {},
            "pattern: found '2:4' beside sparsity",
        ),
        ("wanda", {"quantization": {"budget": 3}}, r"pruning: found beside quantization\.budget"),
        (None, {"calibration": {"samples": 3}}, "calibration: found, and nothing chosen looks at examples"),
    ],
    ids=str,
)
def test_a_wrong_section_is_told_where_it_stands(pruning, more, told, tmp_path):
    with pytest.raises(PeftkitError, match=told):
        recipe.load({**make_recipe(tmp_path, "lora"), "pruning": pruning, **more})


def test_maps_that_cannot_be_pruned_are_told_by_the_plan(tmp_path):
    with pytest.raises(PeftkitError, match=r"pruning: .*'q_porj'"):
        plan(load(tmp_path, {"wanda": {"targets": "q_porj"}}))
    with pytest.raises(PeftkitError, match=r"pattern 2:5 does not divide the 16 inputs"):
        plan(load(tmp_path, {"wanda": {"pattern": "2:5"}}))


def test_a_base_that_is_packed_already_is_refused(tmp_path):
    from peftkit.export.packed import quantize

    chosen = on_folder(tmp_path, "wanda")
    quantize(str(tmp_path / "base"), "int4", tmp_path / "packed", ["group_size=16"])
    with pytest.raises(PeftkitError, match="is packed already and cannot be pruned: name the original model"):
        assemble(chosen.model_copy(update={"model": ModelSection(name=str(tmp_path / "packed"))}), bare=True)
