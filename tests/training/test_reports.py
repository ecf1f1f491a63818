"""Loggers beside the log: every figure reaches each of them, a resumed run goes on in the same run, none ends a run.

TensorBoard's files are read by its own reader. The others are held by packages that record what they are asked, and by
the packages themselves where those are installed.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from small_runs import make_recipe

from peftkit import recipe
from peftkit.errors import OutputLost, PeftkitError
from peftkit.loggers import LOGGERS
from peftkit.loggers.mlflow import leaves
from peftkit.plan import plan
from peftkit.together import Job, train_together
from peftkit.training import Interrupted, Silent, log, session, train
from peftkit.training.reports import FIGURES, FILE

Steps = dict[int, dict[str, float]]


@dataclass
class Recorded:
    """What a package of ours was asked to do."""

    begun: list[dict[str, Any]] = field(default_factory=list)
    """What each run was begun with, one that goes on too."""
    runs: dict[str, Steps] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    """Figures by run and step; without a step under -1."""
    closed: list[str] = field(default_factory=list)
    fails: str = ""
    """What raises: init, log or finish."""

    def check(self, what: str) -> None:
        if what == self.fails:
            raise OSError("the service is gone\nand more")

    def log(self, run: str, figures: dict[str, float], step: int | None = None) -> None:
        self.check("log")
        self.runs[run][-1 if step is None else step] |= figures

    def close(self, run: str) -> None:
        self.check("finish")
        self.closed.append(run)


def fake_wandb(recorded: Recorded) -> Any:
    def init(**given: Any) -> Any:
        recorded.check("init")
        assert given["resume"] == "allow"
        recorded.begun.append(given)
        name = given["id"] or f"id{len(recorded.begun)}"
        return SimpleNamespace(
            id=name,
            log=lambda figures, step: recorded.log(name, figures, step),
            summary=SimpleNamespace(update=lambda figures: recorded.log(name, figures)),
            finish=lambda: recorded.close(name),
        )

    return SimpleNamespace(init=init, Settings=lambda **given: given, api=SimpleNamespace(api_key=None))


def fake_trackio(recorded: Recorded) -> Any:
    def init(**given: Any) -> Any:
        recorded.check("init")
        assert given["resume"] == "allow"
        recorded.begun.append(given)
        return SimpleNamespace(
            log=lambda figures, step=None: recorded.log(given["name"], figures, step),
            finish=lambda: recorded.close(given["name"]),
        )

    return SimpleNamespace(init=init)


class FakeParam(NamedTuple):
    key: str
    value: str


class FakeMetric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


def fake_mlflow(recorded: Recorded) -> Any:
    class Client:
        experiments: dict[str, str] = {}

        def __init__(self, tracking_uri: str | None):
            self.uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> Any:
            found = self.experiments.get(name)
            return None if found is None else SimpleNamespace(experiment_id=found)

        def create_experiment(self, name: str) -> str:
            self.experiments[name] = f"e{len(self.experiments)}"
            return self.experiments[name]

        def create_run(self, experiment: str, run_name: str) -> Any:
            recorded.check("init")
            recorded.begun.append({"experiment": experiment, "name": run_name, "config": {}})
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(recorded.begun)}"))

        def update_run(self, run: str, status: str) -> None:
            assert status == "RUNNING"
            assert run in recorded.runs
            recorded.begun.append({"id": run})

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            assert len(params) <= 100
            for param in params:
                assert 0 < len(param.value) <= 500
                recorded.begun[-1]["config"][param.key] = param.value
            for metric in metrics:
                recorded.log(run, {metric.key: metric.value}, metric.step)

        def set_terminated(self, run: str, status: str) -> None:
            recorded.close(f"{run} {status}")

    return SimpleNamespace(MlflowClient=Client, entities=SimpleNamespace(Param=FakeParam, Metric=FakeMetric))


FAKES: dict[str, Callable[[Recorded], Any]] = {"wandb": fake_wandb, "trackio": fake_trackio, "mlflow": fake_mlflow}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    """Put a recording package in the place of each logger's."""
    recorded = {name: Recorded() for name in FAKES}
    for name, fake in FAKES.items():
        monkeypatch.setitem(sys.modules, name, fake(recorded[name]))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return recorded


class Heard(Silent):
    """Keeps notices; its output is lost at the step `ends`."""

    def __init__(self, ends: int | None = None):
        self.ends, self.notices = ends, []

    def step(self, record: dict[str, Any]) -> None:
        if record["step"] == self.ends:
            raise OutputLost("the terminal", OSError("gone"))

    def notice(self, text: str) -> None:
        self.notices.append(text)

    @property
    def failures(self) -> list[str]:
        return [text for text in self.notices if "failed and is left off" in text]


def run_of(source: Path, folder: Path, loggers: list[Any], ends: int | None = None, resume: bool = False) -> Heard:
    """Train four steps, or until the observer's output is lost."""
    heard = Heard(ends)
    given = make_recipe(source, "lora", max_steps=4, evaluate_every=2, log=loggers)
    train(recipe.load(given), folder, resume=resume, observer=heard)
    return heard


def expected(folder: Path) -> Steps:
    """Return what loggers should have, from the log."""
    keys = (*FIGURES, "validation_loss")
    return {
        record["step"]: {key: record[key] for key in keys if record.get(key) is not None}
        for record in log.read(folder / "log.jsonl")
    }


def steps(found: Steps) -> Steps:
    """Return the figures of steps alone."""
    kept = {
        step: {key: value for key, value in figures.items() if not key.startswith("run/")}
        for step, figures in found.items()
    }
    return {step: figures for step, figures in kept.items() if step > 0}


def test_every_logger_of_the_registry_is_held_here():
    assert {*FAKES, "tensorboard"} == set(LOGGERS.names())


def test_all_of_them_at_once_are_told_every_figure(source, tmp_path, fakes):
    heard = run_of(source, tmp_path / "run", ["mlflow", "trackio", {"wandb": {"project": "mine", "tags": ["a"]}}])
    assert not heard.failures
    assert sorted(expected(tmp_path / "run")) == [1, 2, 3, 4]
    for name, recorded in fakes.items():
        (found,) = recorded.runs.values()
        assert steps(found) == expected(tmp_path / "run"), name
        whole = {key.removeprefix("run/"): value for step in (-1, 0) for key, value in found.get(step, {}).items()}
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert whole["losses/last"] == summary["losses"]["last"], name
        assert whole["trainable_parameters"] == summary["trainable_parameters"]
        assert len(recorded.begun) == len(recorded.closed) == 1
    assert fakes["wandb"].begun[0]["project"] == "mine"
    assert fakes["wandb"].begun[0]["tags"] == ["a"]
    assert fakes["wandb"].begun[0]["mode"] == "offline", "without a login nobody is asked for one"
    assert fakes["wandb"].begun[0]["config"]["train"]["max_steps"] == 4
    assert fakes["mlflow"].begun[0]["config"]["train.max_steps"] == "4"
    assert fakes["mlflow"].closed[0].endswith("FINISHED")


def test_a_resumed_run_goes_on_in_the_same_run(source, tmp_path, fakes):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_of(source, folder, list(FAKES), ends=2)
    assert all(len(recorded.closed) == 1 for recorded in fakes.values()), "it is closed at the end of each sitting"
    assert fakes["mlflow"].closed[0].endswith("KILLED")
    assert not run_of(source, folder, list(FAKES), resume=True).failures
    for name, recorded in fakes.items():
        assert len(recorded.begun) == 2, name
        (found,) = recorded.runs.values()
        assert steps(found) == expected(folder)
    kept = json.loads((folder / FILE).read_text())
    assert kept.keys() == FAKES.keys()
    assert fakes["wandb"].begun[1]["id"] == kept["wandb"]


def test_two_runs_of_one_name_are_two_runs(source, tmp_path, fakes):
    for place in ("one", "other"):
        run_of(source, tmp_path / place / "run", list(FAKES))
    for name, recorded in fakes.items():
        assert len(recorded.runs) == 2, name


def test_a_resumed_run_may_take_up_another_logger(source, tmp_path, fakes):
    with pytest.raises(Interrupted):
        run_of(source, tmp_path / "run", [], ends=2)
    assert not (tmp_path / "run" / FILE).exists()
    run_of(source, tmp_path / "run", ["wandb"], resume=True)
    (found,) = fakes["wandb"].runs.values()
    assert set(steps(found)) == {3, 4}


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
@pytest.mark.parametrize("name", FAKES)
def test_one_that_fails_is_told_of_once_and_ends_no_run(source, tmp_path, fakes, name, fails):
    fakes[name].fails = fails
    others = [other for other in FAKES if other != name]
    heard = run_of(source, tmp_path / "run", list(FAKES))
    (told,) = heard.failures
    assert told.startswith(f"train.log: '{name}' failed")
    assert "the service is gone)" in told
    assert (tmp_path / "run" / "summary.json").is_file()
    for other in others:
        (found,) = fakes[other].runs.values()
        assert set(steps(found)) == {1, 2, 3, 4}


def test_the_figures_are_the_same_with_and_without_loggers(source, tmp_path, fakes):
    run_of(source, tmp_path / "bare", [])
    run_of(source, tmp_path / "told", list(FAKES))
    losses = [[record["loss"] for record in log.read(tmp_path / name / "log.jsonl")] for name in ("bare", "told")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "bare" / FILE).exists()


def test_runs_that_train_together_are_told_of_apart(source, tmp_path, fakes):
    jobs = []
    for rank in (2, 4):
        given = make_recipe(source, {"lora": {"rank": rank}}, max_steps=3, log=list(FAKES), precision="fp32")
        given["model"]["init"]["attention_dropout"] = 0.0
        jobs.append(Job(f"rank{rank}", recipe.load(given), tmp_path / f"rank{rank}"))
    train_together(jobs)
    for name, recorded in fakes.items():
        assert len(recorded.runs) == len(recorded.closed) == 2, name
        for job, found in zip(jobs, recorded.runs.values(), strict=True):
            assert steps(found) == expected(job.run), name


def test_a_run_whose_end_cannot_be_written_leaves_no_logger_open(source, tmp_path, fakes, monkeypatch):
    def refused(*given: Any, **named: Any) -> None:
        raise PeftkitError("the disk is full")

    monkeypatch.setattr(session, "save_adapter", refused)
    with pytest.raises(PeftkitError, match="the disk is full"):
        run_of(source, tmp_path / "run", list(FAKES))
    assert all(len(recorded.closed) == 1 for recorded in fakes.values())
    assert fakes["mlflow"].closed[0].endswith("KILLED")


def test_a_damaged_file_of_identities_begins_new_runs_and_says_so(source, tmp_path, fakes):
    with pytest.raises(Interrupted):
        run_of(source, tmp_path / "run", ["wandb"], ends=2)
    (tmp_path / "run" / FILE).write_text("[1")
    heard = run_of(source, tmp_path / "run", ["wandb"], resume=True)
    assert any(FILE in text and "begin new runs" in text for text in heard.notices)
    assert fakes["wandb"].begun[1]["id"] is None


@pytest.mark.parametrize("name", LOGGERS.names())
def test_one_without_its_package_is_refused_before_anything(source, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, LOGGERS[name].package, None)
    given = recipe.load(make_recipe(source, "lora", max_steps=1, log=[name]))
    for action in (plan, lambda chosen: train(chosen, tmp_path / "run")):
        with pytest.raises(PeftkitError, match=rf"train.log: '{name}' needs the package .*'peftkit\[{name}\]'"):
            action(given)
    assert not (tmp_path / "run").exists()


def test_every_extra_is_one_of_the_package():
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for _, logger in LOGGERS.items():
        assert f"\n{logger.extra} = [" in text


def test_a_switch_of_earlier_recipes_is_the_logger(source):
    for value, found in ((True, ("tensorboard",)), (False, ())):
        assert recipe.load(make_recipe(source, "lora", max_steps=1, tensorboard=value)).train.log == found


def test_leaves_are_dotted_keys_without_what_is_null():
    assert list(leaves({"a": {"b": 1, "c": None}, "d": [2]})) == [("a.b", 1), ("d", [2])]


def test_tensorboard_reads_what_was_written_and_what_a_resumed_run_added(source, tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_of(source, folder, ["tensorboard"], ends=2)
    assert not run_of(source, folder, ["tensorboard"], resume=True).failures
    result = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in ("loss", "lr", "grad_norm"):
        found = {event.step: event.value for event in result.Scalars(name)}
        assert found == pytest.approx({step: figures[name] for step, figures in expected(folder).items()})
    assert [event.step for event in result.Scalars("validation_loss")] == [2, 4]
    assert result.Scalars("run/losses/last")


def resumed_run(source: Path, folder: Path, logger: Any) -> None:
    """Stop a run at its second step, and go on with it."""
    with pytest.raises(Interrupted):
        run_of(source, folder, [logger], ends=2)
    assert not run_of(source, folder, [logger], resume=True).failures


def test_mlflow_itself_has_one_run_with_every_step(source, tmp_path, monkeypatch):
    # Its stores in a database need packages that its lighter distribution lacks.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="the package mlflow is not installed")
    uri = (tmp_path / "store").as_uri()
    resumed_run(source, tmp_path / "run", {"mlflow": {"tracking_uri": uri}})
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("peftkit").experiment_id])
    assert (found.info.status, found.data.params["train.max_steps"]) == ("FINISHED", "4")
    history = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")}
    assert history == {step: figures["loss"] for step, figures in expected(tmp_path / "run").items()}


def test_wandb_itself_keeps_a_run_offline(source, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    resumed_run(source, tmp_path / "run", "wandb")
    identity = json.loads((tmp_path / "run" / FILE).read_text())["wandb"]
    assert list((tmp_path / "run").rglob(f"*{identity}.wandb"))


def test_trackio_itself_has_one_run(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the package trackio is not installed")
    resumed_run(source, tmp_path / "run", {"trackio": {"project": f"peftkit-test-{tmp_path.name}"}})
    import trackio

    found = [one.name for one in trackio.Api().runs(f"peftkit-test-{tmp_path.name}")]
    assert found == [json.loads((tmp_path / "run" / FILE).read_text())["trackio"]]
