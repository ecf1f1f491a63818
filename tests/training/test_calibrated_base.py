"""Runs on a base that examples have packed: the same bits in every start, kept beside the run, refused elsewhere."""

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
from peftkit.export import merge
from peftkit.export.combined import combine_runs
from peftkit.models.calibrated_folder import FACTS, WEIGHTS
from peftkit.plan import plan
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import BASE
from peftkit.tensor_file import read_tensors
from peftkit.together import Job, train_together
from peftkit.training import Interrupted, session, train

CALIBRATED = [name for name, cls in QUANTIZERS.items() if cls.calibrated]
IDS = torch.arange(3, 40)[None]


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def load(folder: Path, name: str = "gptq", *overrides: str, method: Any = "lora", **train: Any) -> recipe.Recipe:
    keys = make_recipe(folder, method, **{"max_steps": 6, "precision": "fp32", **train})
    keys["quantization"] = {"format": name, "bits": 3, "group_size": 16}
    keys["calibration"] = {"samples": 16}
    return recipe.load(keys, overrides)


def packed(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / BASE / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", CALIBRATED)
def test_it_trains_as_planned_resumes_bit_for_bit_and_answers_without_its_data(name, tmp_path):
    chosen = load(tmp_path, name, method=["lora", {"serial-adapter": {"bottleneck": 8}}])
    foretold = plan(chosen)
    summary = train(chosen, tmp_path / "whole")
    assert summary.losses["last"] < summary.losses["first"]
    assert (summary.trainable_parameters, summary.total_parameters) == (foretold.trainable, foretold.total)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    before = packed(tmp_path / "parts")
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert same(before, packed(tmp_path / "parts"))
    assert same(before, packed(tmp_path / "whole"))
    adapters = [(tmp_path / run / "adapter" / "adapter.safetensors").read_bytes() for run in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    told = answer(tmp_path / "whole", "red")
    shutil.rmtree(tmp_path / "data")
    assert answer(tmp_path / "whole", "red") == told
    assert answer(tmp_path / "whole", "red", base=True) != told


def test_a_resumed_run_takes_the_weights_from_its_folder_and_refuses_others(tmp_path, monkeypatch):
    chosen = load(tmp_path)
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "run", observer=Stops(3, signal.SIGINT))
    monkeypatch.setattr("peftkit.calibration.calibrate", None)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    train(chosen, tmp_path / "again", resume=True)
    monkeypatch.undo()
    monkeypatch.setattr("peftkit.calibration.examples", lambda *_: [IDS])
    shutil.rmtree(tmp_path / "run" / BASE)
    with pytest.raises(PeftkitError, match="the calibrated weights of the base changed since its checkpoint"):
        train(chosen, tmp_path / "run", resume=True)


def test_the_packed_weights_follow_from_data_and_seed(tmp_path):
    for run, overrides in {"one": (), "two": (), "other": ("calibration.seed=1",)}.items():
        train(load(tmp_path, "gptq", *overrides, max_steps=1), tmp_path / run)
    assert same(packed(tmp_path / "one"), packed(tmp_path / "two"))
    assert not same(packed(tmp_path / "one"), packed(tmp_path / "other"))
    plain = recipe.load({**make_recipe(tmp_path), "quantization": {"format": "int3", "group_size": 16}})
    rounded = assemble(plain, bare=True)
    codes = {path: one.codes for path, one in rounded.module.named_modules() if isinstance(one, PackedLinear)}
    found = packed(tmp_path / "one")
    assert any(not torch.equal(found[f"{path}.codes"], one) for path, one in codes.items())
    assert set(found) > {f"{path}.codes" for path in codes}


def test_what_is_damaged_or_of_another_base_is_refused(tmp_path):
    train(load(tmp_path, max_steps=1), tmp_path / "run")
    weights = tmp_path / "run" / BASE / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-5] ^= 255
    weights.write_bytes(content)
    with pytest.raises(PeftkitError, match=r"calibrated\.safetensors is damaged: its checksum differs"):
        answer(tmp_path / "run", "red")
    content[-5] ^= 255
    weights.write_bytes(content)
    answer(tmp_path / "run", "red")
    given = f"calibration.weights={tmp_path / 'run'}"
    with pytest.raises(PeftkitError, match=r"weights stored as gptq \(bits 3.*name a run of the same formats"):
        train(load(tmp_path, "gptq", given, "quantization.bits=4"), tmp_path / "bits")
    with pytest.raises(PeftkitError, match="another base model: name a run of this one"):
        train(load(tmp_path, "gptq", given, "model.seed=3"), tmp_path / "seed")
    facts = tmp_path / "run" / BASE / FACTS
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "version": 99}))
    with pytest.raises(PeftkitError, match="has the version 99; read is 1"):
        answer(tmp_path / "run", "red")


def test_another_run_stands_on_the_same_weights_or_is_refused(tmp_path):
    train(load(tmp_path, max_steps=2), tmp_path / "first")
    onward = f"adapter={tmp_path / 'first'}"
    with pytest.raises(PeftkitError, match=r"pruned or packed otherwise.*calibration\.weights"):
        train(load(tmp_path, "gptq", onward, "calibration.seed=1", max_steps=2), tmp_path / "other")
    weights = f"calibration.weights={tmp_path / 'first'}"
    train(load(tmp_path, "gptq", onward, weights, "calibration.seed=1", max_steps=2), tmp_path / "second")
    assert same(packed(tmp_path / "first"), packed(tmp_path / "second"))
    shutil.rmtree(tmp_path / "first")
    answer(tmp_path / "second", "red")


def test_runs_that_are_trained_together_share_and_keep_one_base(tmp_path):
    recipes = {"one": load(tmp_path, max_steps=2), "two": load(tmp_path, max_steps=2, seed=1)}
    train_together([Job(name, chosen, tmp_path / name) for name, chosen in recipes.items()])
    assert same(packed(tmp_path / "one"), packed(tmp_path / "two"))
    answer(tmp_path / "two", "red")
    other = load(tmp_path, "gptq", "calibration.samples=8", max_steps=2)
    with pytest.raises(PeftkitError, match=r"calibration\.samples is 16 in one and 8 in two"):
        train_together([Job("one", recipes["one"], tmp_path / "c"), Job("two", other, tmp_path / "d")])


def test_a_start_that_packs_anew_is_found_again(tmp_path):
    chosen = load(tmp_path, method={"lora": {"init": "loftq", "rank": 2}}, max_steps=3)
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(2, signal.SIGINT))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert answer(tmp_path / "parts", "red") == answer(tmp_path / "whole", "red")


@pytest.mark.parametrize("into", ["original", "dequantized"])
def test_a_run_is_merged_into_either_weights(into, tmp_path):
    keys = make_recipe(tmp_path, "lora", max_steps=3)
    first = tmp_path / "base"
    merge_base(keys, first)
    keys["model"] = str(first)
    keys["quantization"] = {"format": "gptq", "bits": 3, "group_size": 16}
    train(recipe.load(keys), tmp_path / "run")
    report = merge(tmp_path / "run", tmp_path / "merged", into=into)
    assert report["max_difference"] <= report["bound"]
    if into == "dequantized":
        assert report["trained_max_difference"] <= report["bound"]


def merge_base(keys: dict[str, Any], folder: Path) -> None:
    """Write a recipe's model of random weights as a folder."""
    base = assemble(recipe.load(keys), bare=True)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def test_a_method_of_trained_scales_takes_it(tmp_path):
    train(load(tmp_path, "gptq", method={"qa-lora": {"rank": 2}}, max_steps=2), tmp_path / "qa")
    train(load(tmp_path, "awq", method="peqa", max_steps=2), tmp_path / "peqa")
    answer(tmp_path / "qa", "red")
    answer(tmp_path / "peqa", "red")
    with pytest.raises(PeftkitError, match="integers with zero points"):
        plan(load(tmp_path, "awq", method={"qa-lora": {"rank": 2}}))


def test_the_plan_counts_what_calibration_takes(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2}
    keys = make_recipe(tmp_path, "lora", max_steps=1)
    keys["model"]["init"] |= sizes
    plain = plan(recipe.load({**keys, "quantization": {"format": "int4"}})).memory
    found = plan(recipe.load({**keys, "quantization": {"format": "gptq"}})).memory
    assert found.moment == "loading"
    # Four maps of 512 inputs and two more, one of 2048, whose sums in fp32 stand beside its factor in float64.
    least = 4 * (6 * 512**2 + 2048**2) + 8 * 2048**2
    assert found.peak - found.parts["process"] >= plain.parts["weights"] + least


def test_data_without_an_example_that_keeps_a_target_are_told(tmp_path):
    keys = make_recipe(tmp_path, "lora", max_steps=1)
    rows = [{"prompt": "red", "completion": ""}, {"prompt": "blue", "completion": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys |= {"dataset": {"name": "jsonl", "path": str(tmp_path / "rows.jsonl")}}
    keys["quantization"] = {"format": "gptq", "group_size": 16}
    with pytest.raises(PeftkitError, match=r"calibration: none of the 2 examples drawn of jsonl keeps a token"):
        train(recipe.load(keys), tmp_path / "run")
    assert not (tmp_path / "run" / BASE).exists()


def test_what_a_killed_process_left_of_a_base_gives_way(tmp_path):
    train(load(tmp_path, max_steps=1), tmp_path / "whole")
    (tmp_path / "run" / BASE).mkdir(parents=True)
    (tmp_path / "run" / BASE / WEIGHTS).write_bytes(b"half")
    train(load(tmp_path, max_steps=1), tmp_path / "run")
    assert same(packed(tmp_path / "run"), packed(tmp_path / "whole"))


def test_adapters_of_one_base_are_combined_on_it(tmp_path):
    train(load(tmp_path, max_steps=2), tmp_path / "one")
    weights = f"calibration.weights={tmp_path / 'one'}"
    train(load(tmp_path, "gptq", weights, "train.seed=1", max_steps=2), tmp_path / "two")
    train(load(tmp_path, "gptq", "calibration.seed=1", max_steps=2), tmp_path / "other")
    combine_runs([tmp_path / "one", tmp_path / "two"], tmp_path / "both", "concatenate")
    answer(tmp_path / "both", "red")
    with pytest.raises(PeftkitError, match="only adapters of one storage can be combined"):
        combine_runs([tmp_path / "one", tmp_path / "other"], tmp_path / "wrong", "concatenate")
