"""Trained adapters that a method builds from: given to it at their sites, left as they are, demanded when it loads."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from random_runs import write_random_run
from small_runs import make_recipe
from test_session import Stops, records
from torch import Tensor, nn

from peftkit import recipe
from peftkit.adaptation import DESCRIPTION, TENSORS, digests, load_adapter, save_adapter
from peftkit.assembly import assemble, attach_methods, read_run
from peftkit.errors import PeftkitError
from peftkit.layout import Site
from peftkit.method import METHODS, Targeted
from peftkit.plan import plan
from peftkit.ports.adapter import Call
from peftkit.ports.linear import LinearAdapter
from peftkit.tensor_file import read_tensors, write_tensors
from peftkit.together import Job, train_together
from peftkit.training import Interrupted, Summary, train
from peftkit_cli.main import main

IDS = torch.arange(3, 12)[None]
Runs = Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Gated(Targeted):
    """W x + Σ_i g_i (child_i(x) − W x), with a gate g_i of one for each child at the site."""

    name = "gated"

    def build(self, site: Site) -> LinearAdapter:
        return Gates(site)


class Gates(LinearAdapter):
    def __init__(self, site: Site):
        super().__init__(site)
        self.g = nn.Parameter(torch.ones(len(site.children)))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        changes = [child(call, x) - y for child in self.site.children.values()]
        return y + sum(gate * change for gate, change in zip(self.g, changes, strict=True))

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        merged = weight.clone()
        for gate, child in zip(self.g, self.site.children.values(), strict=True):
            merged += gate * (child.merge(weight, None)[0] - weight)
        return merged, bias


@pytest.fixture(autouse=True)
def gated(monkeypatch: pytest.MonkeyPatch) -> type[Gated]:
    METHODS.names()
    monkeypatch.setitem(METHODS._entries, "gated", Gated)
    return Gated


@pytest.fixture(scope="module")
def runs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of two methods, the first with dropout, the second with a module that its adapters share."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {"one": {"lora": {"rank": 2, "dropout": 0.5}}, "other": {"vera": {"rank": 4, "targets": ["v", "o"]}}}
    for name, method in methods.items():
        train(recipe.load(make_recipe(source, method, max_steps=3)), folder / name)
    return {name: folder / name for name in methods}


@pytest.fixture
def keys(runs: Runs, source: Path) -> dict[str, Any]:
    keys = make_recipe(source, {"gated": {"targets": ["q", "v"]}}, max_steps=6)
    return {**keys, "adapters": {name: str(run) for name, run in runs.items()}}


@pytest.fixture
def copies(runs: Runs, keys: dict[str, Any], tmp_path: Path) -> Runs:
    """Copies of the runs, which a test may change; the recipe names them."""
    found = {name: Path(shutil.copytree(run, tmp_path / name)) for name, run in runs.items()}
    keys["adapters"] = {name: str(run) for name, run in found.items()}
    return found


def held(assembled: Any) -> dict[str, Tensor]:
    """Return the tensors of the children by name and key."""
    children = assembled.adaptation.children
    return {f"{name}/{key}": tensor for name in children for key, tensor in children[name].state.state().items()}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_children_are_what_was_trained_at_the_site(keys, runs):
    assembled = assemble(recipe.load(keys))
    sites = {key: adapter.site for part in assembled.adaptation.parts for key, adapter in part.adapters.items()}
    assert len(sites) == 4
    for key, site in sites.items():
        assert list(site.children) == (["one"] if key.endswith("q_proj") else ["one", "other"])
        assert all(child.site.id == key and child.site.module is site.module for child in site.children.values())
    saved = {f"{name}/{k}": t for name, run in runs.items() for k, t in read_tensors(run / "adapter" / TENSORS).items()}
    assert held(assembled).keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in held(assembled).items())


def test_one_child_behind_an_open_gate_computes_what_it_did(keys, runs):
    keys["adapters"] = {"one": str(runs["one"])}
    alone = assemble(read_run(runs["one"]), runs["one"] / "adapter")
    summed = assemble(recipe.load(keys))
    expected = logits(alone.model)
    assert not torch.equal(expected, logits(assemble(recipe.load(keys), bare=True).model))
    torch.testing.assert_close(logits(summed.model), expected, rtol=0, atol=1e-5)


def test_they_are_frozen_in_eval_mode_and_counted_once(keys):
    assembled = assemble(recipe.load(keys))
    adaptation, model = assembled.adaptation, assembled.module
    base = sum(p.numel() for p in assemble(recipe.load(keys), bare=True).module.parameters())
    children = sum(
        p.numel() for child in adaptation.children.values() for m in child.state.added() for p in m.parameters()
    )
    assert adaptation.trainable == sum(len(a.site.children) for a in adaptation.adapters()) == 6
    assert adaptation.total == base + children + 6
    model.train()
    modules = [module for child in adaptation.children.values() for module in child.state.added()]
    assert not any(module.training for top in modules for module in top.modules())
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert next(iter(adaptation.adapters())).training
    model.to(torch.float64)
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float64}


def test_training_moves_the_gates_and_no_child(keys, tmp_path):
    fresh = assemble(recipe.load(keys))
    before = {key: tensor.clone() for key, tensor in held(fresh).items()}
    summary = train(recipe.load(keys), tmp_path / "run")
    assert (summary.trainable_parameters, summary.total_parameters) == (6, fresh.adaptation.total)
    trained = assemble(read_run(tmp_path / "run"), tmp_path / "run" / "adapter")
    assert held(trained).keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in held(trained).items())
    saved = read_tensors(tmp_path / "run" / "adapter" / TENSORS)
    assert len(saved) == 4
    assert all(key.endswith("/g") and not torch.equal(g, torch.ones_like(g)) for key, g in saved.items())
    assert not torch.equal(logits(trained.model), logits(fresh.model))


def test_the_file_names_them_and_loads_into_what_was_saved(keys, runs, tmp_path):
    assembled = assemble(recipe.load(keys))
    for _, gate in assembled.adaptation.parameters():
        torch.nn.init.normal_(gate)
    save_adapter(assembled.adaptation, tmp_path / "adapter", assembled.description)
    children = json.loads((tmp_path / "adapter" / DESCRIPTION).read_text())["children"]
    for name, run in runs.items():
        fingerprint = assembled.fingerprint
        files = digests(run / "adapter")
        assert children[name] == {"folder": str(run), "files": files, "fingerprint": fingerprint}
    assert torch.equal(logits(assemble(recipe.load(keys), tmp_path / "adapter").model), logits(assembled.model))


def test_a_resumed_run_is_the_same_bit_for_bit(keys, tmp_path):
    train(recipe.load(keys), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe.load(keys), tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    train(recipe.load(keys), tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    whole, parts = ((tmp_path / name / "adapter" / TENSORS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_run_whose_child_changed_is_not_resumed(keys, copies, tmp_path):
    with pytest.raises(Interrupted):
        train(recipe.load(keys), tmp_path / "run", observer=Stops(3, signal.SIGINT))
    change(copies["one"] / "adapter" / DESCRIPTION, lambda content: content.update(peftkit="0"))
    with pytest.raises(PeftkitError, match="the files of the adapters changed since its checkpoint"):
        train(recipe.load(keys), tmp_path / "run", resume=True)


def test_removing_it_takes_them_off(keys):
    assembled = assemble(recipe.load(keys), bare=True)
    before = list(assembled.module.state_dict())
    expected = logits(assembled.model)
    first = attach_methods(assembled, recipe.load(keys), "first").adaptation
    second = attach_methods(assembled, recipe.load({**keys, "adapters": {}, "method": "vera"}), "second").adaptation
    for adaptation in (first, second):
        adaptation.remove()
    assert list(assembled.module.state_dict()) == before
    assert torch.equal(logits(assembled.model), expected)


def test_the_plan_tells_what_of_them_is_used(keys, runs):
    told = plan(recipe.load(keys)).adapters
    assert told == [f"one: lora at 4 of 4 sites ({runs['one']})", f"other: vera at 2 of 4 sites ({runs['other']})"]


def test_runs_with_children_are_trained_together(keys, tmp_path):
    keys["model"]["init"]["attention_dropout"] = 0.0
    train(recipe.load(keys), tmp_path / "alone")
    jobs = [Job(name, recipe.load(keys), tmp_path / name) for name in ("first", "second")]
    assert all(isinstance(summary, Summary) for summary in train_together(jobs).values())
    for job in jobs:
        losses = [record["loss"] for record in records(job.run)]
        assert losses == pytest.approx([record["loss"] for record in records(tmp_path / "alone")], rel=1e-5)


def refusal(keys: Mapping[str, Any], **given: Any) -> str:
    """Return why the recipe's model cannot be made."""
    with pytest.raises(PeftkitError) as caught:
        assemble(recipe.load({**keys, **given}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("bitfit", r"'bitfit' trains the model's own model\.layers\.0\.self_attn\.q_proj\.bias; a site is given one"),
        ({"lora": {"rank": 2, "init": "pissa"}}, "'lora' takes its start out of the frozen weights"),
        ({"prompt-tuning": {"length": 2}}, "'prompt-tuning' is a soft prompt, whose rows stand in front of each text"),
        (["lora", {"ia3": {"targets": ["v"]}}], r"'ia3' has a second adapter at model\.layers\.0\.self_attn\.v_proj;"),
    ],
)
def test_what_is_no_adapter_at_a_site_is_refused(keys, source, tmp_path, method, reason):
    base = assemble(recipe.load(make_recipe(source, method)))
    save_adapter(base.adaptation, tmp_path / "adapter", base.description)
    told = refusal(keys, adapters={"mine": str(tmp_path)})
    assert told.startswith(f"adapters.mine ({tmp_path}): ")
    assert re.search(reason, told)


def test_what_was_built_from_adapters_is_refused(keys, tmp_path):
    built = assemble(recipe.load(keys))
    save_adapter(built.adaptation, tmp_path / "adapter", built.description)
    told = refusal(keys, adapters={"mine": str(tmp_path)})
    assert told.startswith(f"adapters.mine ({tmp_path}) was built from adapters itself")
    with pytest.raises(PeftkitError, match=r"built from the adapters: one, other; named are: none\. .* `adapters` in"):
        load_adapter(assemble(recipe.load(keys), bare=True).module, tmp_path / "adapter", None)


def test_another_base_is_refused_with_both_names(keys, copies):
    other = {**keys, "model": {**keys["model"], "seed": 1}}
    assert re.match(r"adapters\.one \(.*\) and this run stand on different base models \(", refusal(other))
    change(copies["one"] / "adapter" / DESCRIPTION, lambda content: content["base"].update(fingerprint="0", name="x"))
    with pytest.raises(PeftkitError, match=r"adapters\.other \(.*\) and adapters\.one \(.*\) stand on .* and x, whose"):
        plan(recipe.load(keys))


def test_another_storage_is_refused_with_both_names(keys):
    told = refusal(keys, quantization="nf4")
    assert re.match(r"adapters\.one \(.*\) and this run were trained on weights stored as none and nf4 \(", told)


def test_damaged_children_are_refused_with_their_file(keys, copies):
    path = copies["other"] / "adapter" / TENSORS
    tensors = read_tensors(path)
    key = next(iter(tensors))
    write_tensors(path, {**tensors, key: torch.full_like(tensors[key], torch.nan)})
    assert refusal(keys) == f"{path}: the tensor {key} holds NaN or infinity."
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if name != key})
    assert refusal(keys).startswith(f"{path}: the adapter's tensors lacks {key}")
    path.unlink()
    assert str(path) in refusal(keys)


def test_a_method_that_would_save_a_child_is_caught(keys, monkeypatch):
    def build(self: Gated, site: Site) -> LinearAdapter:
        adapter = Gates(site)
        adapter.branches = nn.ModuleList(site.children.values())
        return adapter

    monkeypatch.setattr(Gated, "build", build)
    with pytest.raises(TypeError, match=r"'gated' registers a child in its adapter: read it from site\.children"):
        assemble(recipe.load(keys))


def refused(run: Path) -> str:
    """Return why the trained adapter of a run cannot be opened."""
    with pytest.raises(PeftkitError) as caught:
        assemble(read_run(run), run / "adapter")
    return str(caught.value)


def test_changed_and_missing_children_of_a_run_are_refused_by_name(keys, copies, tmp_path):
    run = tmp_path / "run"
    train(recipe.load(keys), run)
    path = copies["other"] / "adapter" / TENSORS
    write_tensors(path, {key: tensor + 1 for key, tensor in read_tensors(path).items()})
    assert refused(run).startswith(
        f"adapters.other ({copies['other']}): adapter.safetensors changed since the adapter in {run / 'adapter'} was"
    )
    shutil.rmtree(copies["other"])
    line = next(n for n, text in enumerate((run / "recipe.yaml").read_text().splitlines(), 1) if "other:" in text)
    assert refused(run).startswith(f"{run / 'recipe.yaml'}:{line}: adapters.other: {copies['other']} is neither a run")
    text = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    (run / "recipe.yaml").write_text("".join(text[: line - 1] + text[line:]))
    assert "was built from the adapters: one, other; named are: one." in refused(run)


def test_the_commands_open_a_run_with_children(runs, tmp_path, monkeypatch, capsys):
    def peft(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    base = {
        "model": "bundled/tiny",
        "dataset": {"name": "bundled/e2e", "limit": 4},
        "generation": {"max_new_tokens": 4},
    }
    chosen = recipe.load({**base, "method": {"lora": {"rank": 2}}})
    child = write_random_run(tmp_path / "child", chosen, 0.05)
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    keys = {**base, "method": {"gated": {}}, "adapters": {"one": str(child)}, "train": {"max_steps": 2}}
    path.write_text(yaml.safe_dump(keys))
    assert f"one: lora at 8 of 8 sites ({child})" in peft("validate", path)
    peft("train", path, "--output", run)
    peft("train", path, "--output", run, "--resume")
    peft("estimate", path)
    for command in (("eval", run, "--limit", 2), ("generate", run, "name[Blue Spice]"), ("report", run)):
        peft(*command)
    for command in (("merge", run), ("export", run, "--format", "merged")):
        peft(*command, "--output", tmp_path / command[0])
    code = main(["combine", str(run), str(child), "--how", "concatenate", "--output", str(tmp_path / "sum")])
    assert code == 2
    assert "was built from the adapters: one" in capsys.readouterr().err
