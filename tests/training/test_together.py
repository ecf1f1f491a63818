"""Runs that are trained together over one base: each is what it would be by itself."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from draw import thorough
from small_runs import make_recipe, write_documents
from test_session import Stops

from peftkit import lock, recipe, tensor_file
from peftkit.adaptation import TENSORS, activate, attach, attached
from peftkit.errors import PeftkitError
from peftkit.kernels.tree import grow
from peftkit.models.tiny import tiny
from peftkit.ports.attention_along import along
from peftkit.ports.context import Routing
from peftkit.together import Failed, Job, Stopped, train_together
from peftkit.training import Silent, log, session, train
from peftkit.training.loop import Loop

TIMES = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")
MIXED = [
    {"lora": {"rank": 4}},
    {"prefix-tuning": {"length": 5}},
    {"prompt-tuning": {"length": 6}},
    {"prompt-tuning": {"length": 3}},
    "ia3",
    ["dora", "prompt-tuning"],
    "serial-adapter",
]


class Told(Stops):
    """Remembers notices, and interrupts its own process after a step, if one is given."""

    def __init__(self, after: int = -1):
        super().__init__(after, signal.SIGINT)


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def load(source: Path, method: Any = "lora", model: dict[str, Any] | None = None, **train: Any) -> recipe.Recipe:
    """A recipe without dropout, whose draws differ together."""
    keys = make_recipe(source, method, **{"precision": "fp32", **train})
    keys["model"]["init"] |= {"attention_dropout": 0.0, **(model or {})}
    return recipe.load(keys)


def records(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in log.read(run / "log.jsonl")]


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in log.read(run / "log.jsonl")]


def alike(run: Path, other: Path) -> None:
    """Hold the log and the adapter of a run to another's."""
    assert losses(run) == pytest.approx(losses(other), abs=1e-4)
    for one, two in zip(records(run), records(other), strict=True):
        assert one == pytest.approx(two, rel=1e-2, abs=1e-3)
    tensors = [tensor_file.read_tensors(path / "adapter" / TENSORS) for path in (run, other)]
    assert tensors[0].keys() == tensors[1].keys()
    for key, tensor in tensors[0].items():
        torch.testing.assert_close(tensor, tensors[1][key], rtol=0, atol=2e-3)


def jobs(recipes: dict[str, recipe.Recipe], folder: Path, observer: Any = None) -> list[Job]:
    return [Job(name, chosen, folder / name, observer or Silent()) for name, chosen in recipes.items()]


def compare(recipes: dict[str, recipe.Recipe], folder: Path) -> None:
    """Train recipes together and each by itself."""
    results = train_together(jobs(recipes, folder / "together"))
    for name, chosen in recipes.items():
        alone = train(chosen, folder / "alone" / name)
        result = results[name]
        assert not isinstance(result, Failed)
        for key in ("steps", "tokens", "methods", "trainable_parameters", "total_parameters", "examples"):
            assert getattr(result, key) == getattr(alone, key), key
        alike(folder / "together" / name, folder / "alone" / name)
        left = [sorted(path.name for path in (folder / kind / name).iterdir()) for kind in ("together", "alone")]
        assert left[0] == left[1]


@pytest.mark.parametrize("steps", [16, thorough(50)])
def test_eight_jobs_of_different_ranks_and_rates_have_the_losses_of_their_own_runs(
    steps: int, source: Path, tmp_path: Path
):
    recipes = {
        f"job{number}": load(
            source,
            {"lora": {"rank": 1 + number, "targets": "linear"}},
            learning_rate=1e-3 * (1 + number % 4),
            batch_examples=2 + number % 3,
            seed=number,
            max_steps=steps,
        )
        for number in range(8)
    }
    compare(recipes, tmp_path)
    curves = {tuple(losses(tmp_path / "together" / name)) for name in recipes}
    assert len(curves) == 8
    assert all(sum(curve[-5:]) < sum(curve[:5]) for curve in curves)


def test_methods_of_many_kinds_share_a_batch(source: Path, tmp_path: Path):
    recipes = {f"job{n}": load(source, method, max_steps=12) for n, method in enumerate(MIXED)}
    compare(recipes, tmp_path)


def test_windows_data_lengths_and_settings_may_differ(source: Path, tmp_path: Path):
    other = write_documents(tmp_path / "data", 17)
    recipes = {
        "short": load(source, max_steps=3, batch_examples=1),
        "long": load(source, max_steps=9, accumulation=3, gradient_checkpointing=True, clip=None),
        "smooth": load(source, "ia3", epochs=2, accumulation=2, label_smoothing=0.1, schedule="constant"),
        "split": load(source, max_steps=7, shared_prefixes=False, evaluate_every=2, weight_decay=0.1),
    }
    keys = recipes["smooth"].dataset.model_copy(update={"path": str(other)})
    recipes["smooth"] = recipes["smooth"].model_copy(update={"dataset": keys})
    compare(recipes, tmp_path)
    assert len({len(losses(tmp_path / "together" / name)) for name in recipes}) >= 3


@pytest.mark.parametrize("quantization", ["nf4", {"format": "nf4", "init": "loftq"}])
def test_packed_weights_are_shared(quantization: Any, source: Path, tmp_path: Path):
    recipes = {}
    for name, rank in (("small", 2), ("large", 4)):
        keys = make_recipe(source, {"lora": {"rank": rank}}, max_steps=5, precision="fp32")
        keys["model"]["init"]["attention_dropout"] = 0.0
        recipes[name] = recipe.load({**keys, "quantization": quantization})
    if isinstance(quantization, dict):
        with pytest.raises(PeftkitError, match="starts by changing the frozen weights"):
            train_together(jobs(recipes, tmp_path))
    else:
        compare(recipes, tmp_path)


def test_a_run_that_diverges_leaves_the_others_as_they_are(source: Path, tmp_path: Path, monkeypatch):
    recipes = {
        "bad": load(source, max_steps=12, save_every=2),
        "good": load(source, {"lora": {"rank": 3}}, max_steps=12),
        "soft": load(source, "prompt-tuning", max_steps=12),
    }
    begin = Loop.next

    def spoil(loop: Loop) -> Any:
        if loop.step == 4 and loop.section.save_every == 2:
            with torch.no_grad():
                for _, parameter in loop.adaptation.parameters():
                    parameter.fill_(torch.nan)
        return begin(loop)

    monkeypatch.setattr(Loop, "next", spoil)
    notices = Told()
    results = train_together(jobs(recipes, tmp_path / "together", notices))
    monkeypatch.undo()
    bad = results["bad"]
    assert isinstance(bad, Failed)
    assert "the loss is nan at step 5 of 12" in bad.reason
    assert any("The other runs go on." in notice for notice in notices.notices)
    assert len(losses(tmp_path / "together" / "bad")) == 4
    assert [path.name for path in sorted((tmp_path / "together/bad/checkpoints").iterdir())] == [
        "step-00000002",
        "step-00000004",
    ]
    for name in ("good", "soft"):
        train(recipes[name], tmp_path / "alone" / name)
        alike(tmp_path / "together" / name, tmp_path / "alone" / name)
    # By itself it goes on from its checkpoint.
    assert train(recipes["bad"], tmp_path / "together/bad", resume=True).steps == 12


def test_interrupted_runs_go_on_together_or_alone(source: Path, tmp_path: Path):
    recipes = {
        "one": load(source, {"lora": {"rank": 2}}, max_steps=8),
        "two": load(source, "prefix-tuning", max_steps=6, accumulation=2),
        "three": load(source, max_steps=2),
    }
    train_together(jobs(recipes, tmp_path / "whole"))
    given = jobs(recipes, tmp_path / "parts")
    given[0] = Job("one", recipes["one"], tmp_path / "parts/one", Told(3))
    with pytest.raises(Stopped) as stop:
        train_together(given)
    assert stop.value.exit_code == 130
    assert [path.parent.parent.name for path in stop.value.checkpoints] == ["one", "two"]
    assert all(path.name == "step-00000003" for path in stop.value.checkpoints)
    with pytest.raises(PeftkitError, match="already holds"):
        train_together(jobs(recipes, tmp_path / "parts"))
    notices = Told()
    given = jobs(recipes, tmp_path / "parts", notices)
    given[0] = Job("one", recipes["one"], tmp_path / "parts/one", Told(5))
    with pytest.raises(Stopped):
        train_together(given, resume=True)
    assert any("is finished" in notice for notice in notices.notices)
    train(recipes["two"], tmp_path / "parts/two", resume=True)
    results = train_together(jobs(recipes, tmp_path / "parts"), resume=True)
    assert [result.steps for result in results.values() if not isinstance(result, Failed)] == [8, 6, 2]
    for name in recipes:
        alike(tmp_path / "parts" / name, tmp_path / "whole" / name)


def test_a_new_run_joins_those_that_are_resumed(source: Path, tmp_path: Path):
    recipes = {"one": load(source, max_steps=2), "two": load(source, {"lora": {"rank": 2}}, max_steps=2)}
    with pytest.raises(PeftkitError, match="there is no run to resume"):
        train_together(jobs(recipes, tmp_path), resume=True)
    train(recipes["one"], tmp_path / "one")
    results = train_together(jobs(recipes, tmp_path), resume=True)
    assert not any(isinstance(result, Failed) for result in results.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"hidden_size": 32}}, "model.init.hidden_size is 16 in one and 32 in other"),
        ({"precision": "bf16"}, "train.precision is 'fp32' in one and 'bf16' in other"),
        ({"method": "bitfit"}, "the method 'bitfit' trains the model's own .*bias"),
        ({"method": {"lora": {"init": "pissa", "rank": 2}}}, "'lora' starts by changing the frozen weights"),
        ({"packing": False}, "train.packing is false"),
    ],
)
def test_what_cannot_share_a_base_is_refused(change: dict[str, Any], message: str, source: Path, tmp_path: Path):
    recipes = {"one": load(source, max_steps=2), "other": load(source, **{"max_steps": 2, **change})}
    with pytest.raises(PeftkitError, match=message):
        train_together(jobs(recipes, tmp_path))
    assert not (tmp_path / "one").exists()


def test_a_model_that_cannot_do_without_padding_is_refused(source: Path, tmp_path: Path):
    keys = make_recipe(source, "lora", max_steps=2)
    keys["model"]["init"] = {"architecture": "bloom", "hidden_size": 16, "n_layer": 2, "n_head": 2}
    with pytest.raises(PeftkitError, match=r"without padding: .*bloom models compute attention in a way of their own"):
        train_together(jobs({"one": recipe.load(keys)}, tmp_path))


def test_two_runs_in_one_folder_are_refused(source: Path, tmp_path: Path):
    chosen = load(source, max_steps=2)
    given = [Job("one", chosen, tmp_path / "run"), Job("two", chosen, tmp_path / "run")]
    with pytest.raises(PeftkitError, match="one and two would both be written to"):
        train_together(given)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(PeftkitError, match="one and two would both be written to"):
        train_together([given[0], Job("two", chosen, tmp_path / "link")])


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_in_use_is_refused_and_the_others_are_left_alone(resume: bool, source: Path, tmp_path: Path):
    given = jobs({"one": load(source, max_steps=2), "two": load(source, max_steps=2, seed=1)}, tmp_path)
    if resume:
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "recipe.yaml").write_text(given[1].recipe.to_yaml())
    with lock.held(tmp_path / "two", print), pytest.raises(PeftkitError, match="two is in use: process"):
        train_together(given, resume=resume)
    assert not (tmp_path / "one").exists()
    results = train_together(given, resume=resume)
    assert not any(isinstance(result, Failed) for result in results.values())
    assert not [*tmp_path.glob(f"*/{lock.NAME}")]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_whose_folder_goes_takes_no_other_with_it(stopped: bool, source: Path, tmp_path: Path):
    class Removes(Stops):
        """Removes the folder of the first run, whose record of the step is written by then."""

        def step(self, record: dict[str, Any]) -> None:
            if record["step"] == self.after:
                shutil.rmtree(tmp_path / "one")
                if stopped:
                    os.kill(os.getpid(), self.number)

    one, two = jobs({"one": load(source, max_steps=4), "two": load(source, max_steps=4, seed=1)}, tmp_path)
    given = [one, Job(two.name, two.recipe, two.run, Removes(2, signal.SIGINT))]
    if stopped:
        with pytest.raises(Stopped) as stop:
            train_together(given)
        assert stop.value.checkpoints == [tmp_path / "two" / "checkpoints" / "step-00000002"]
        return
    results = train_together(given)
    assert isinstance(results["one"], Failed)
    assert "removed or replaced while the run was going on" in results["one"].reason
    assert not isinstance(results["two"], Failed)


def test_nothing_passes_from_one_span_to_another():
    """With tokens of one span that are NaN all through, the other's logits are what they are by themselves."""
    from peftkit.method import METHODS

    model = tiny("llama")
    for name, method in (("one", "prefix-tuning"), ("two", "lora")):
        attach(model, [METHODS[method].from_options({})], name=name)
    root = attached(model)
    with torch.no_grad():
        for _, parameter in root.adaptations["one"].parameters():
            parameter.fill_(torch.nan)
    trees = [grow([[5, 6, 7, 8]]), grow([[9, 10, 11], [12, 13]])]
    flat = [torch.cat([getattr(tree, key) for tree in trees])[None] for key in ("ids", "positions")]
    with torch.no_grad():
        with root.context.routed(Routing.of_tokens([("one", 4), ("two", 5)])), along(model, *trees):
            both = model(input_ids=flat[0], position_ids=flat[1], use_cache=False).logits
        activate(model, "two")
        with along(model, trees[1]):
            alone = model(input_ids=flat[0][:, 4:], position_ids=flat[1][:, 4:], use_cache=False).logits
    assert both[:, :4].isnan().all()
    torch.testing.assert_close(both[:, 4:], alone)
