from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from combinations import COMBINATIONS
from draw import some, thorough
from small_runs import make_recipe, write_documents
from storages import section

from peftkit import files, recipe
from peftkit.engine.passes import Plain
from peftkit.errors import PeftkitError
from peftkit.method import METHODS
from peftkit.objectives import Loss
from peftkit.plan import plan
from peftkit.training import Interrupted, Silent, checkpoint, log, preparation, session, train

EACH = [*((name,) for name in METHODS.names()), *COMBINATIONS]
HELD = some("interrupted", EACH, len(EACH) // 8)
"""An eighth: that the state of every method goes on bit for bit is held of the loop alone, in test_loop."""
TIMES = ("tokens_per_s", "trained_tokens_per_s", "memory", "elapsed_s")


class Stops(Silent):
    """Sends a signal to the run's own process after some steps."""

    def __init__(self, after: int, number: int):
        self.after, self.number = after, number
        self.notices: list[str] = []

    def step(self, record: dict[str, Any]) -> None:
        import os

        if record["step"] == self.after:
            os.kill(os.getpid(), self.number)

    def notice(self, text: str) -> None:
        self.notices.append(text)


class Told(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("start", "step", "evaluated", "saved", "notice", "end"):
            return lambda value: self.events.append((name, value))
        return super().__getattribute__(name)


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Leave out the picture, which takes longer than the run, but where it is looked at."""
    if request.node.name != "test_a_run_folder_holds_everything":
        monkeypatch.setattr(session.plot, "draw_loss", lambda *_: None)


def records(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock decides."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in log.read(run / "log.jsonl")]


def test_a_run_folder_holds_everything(source: Path, tmp_path: Path):
    notices = Told()
    chosen = recipe.load(make_recipe(source, epochs=2, accumulation=3, evaluate_every=3, save_every=3))
    summary = train(chosen, tmp_path / "run", observer=notices)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        *("recipe.yaml", "adapter", "checkpoints", "log.jsonl", "summary.json", "loss.png")
    }
    assert recipe.load(run / "recipe.yaml") == chosen
    assert json.loads((run / "summary.json").read_text()) == summary.as_dict()
    # 40 examples in batches of 4 give 10 micro-batches, 4 windows of 3, 3, 3 and 1.
    assert (summary.steps, summary.epochs, summary.examples) == (8, 2.0, 40)
    result = log.read(run / "log.jsonl")
    assert [record["step"] for record in result] == list(range(1, 9))
    assert [record["step"] for record in result if "validation_loss" in record] == [3, 6, 8]
    assert summary.losses["last"] == result[-1]["loss"] < summary.losses["first"] == result[0]["loss"]
    assert summary.losses["validation"] == result[-1]["validation_loss"]
    assert summary.tokens == sum(record["tokens"] for record in result)
    assert summary.peak_memory_bytes > 10_000_000
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in checkpoint.listed(run / "checkpoints")] == ["step-00000003", "step-00000006"]
    assert [name for name, _ in notices.events].count("step") == 8
    name, info = notices.events[0]
    assert name == "start"
    assert set(info["saved"]) == {"padding", "shared"}
    assert 0 < info["largest"]["tokens"] <= max(record["computed_tokens"] for record in result[:4])
    assert 1 <= info["largest"]["step"] <= 4
    for key in ("computed_tokens", "padding_tokens_saved", "shared_tokens_saved"):
        assert getattr(summary, key) == sum(record[key] for record in result)
    assert summary.computed_tokens == summary.tokens - (summary.shared_tokens_saved or 0)
    assert summary.padding_tokens_saved
    assert sum((summary.memory_parts or {}).values()) == summary.peak_memory_bytes
    assert notices.events[-1] == ("end", summary.as_dict())


@pytest.mark.parametrize("methods", [each if each in HELD else thorough(each) for each in EACH], ids="+".join)
def test_interrupted_and_resumed_equals_uninterrupted(methods: tuple[str, ...], source: Path, tmp_path: Path):
    import signal

    keys = make_recipe(source, list(methods), epochs=2, accumulation=3, evaluate_every=2)
    chosen = recipe.load({**keys, "quantization": section(methods)})
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted) as stop:
        train(chosen, tmp_path / "parts", observer=Stops(2, signal.SIGINT))
    assert (stop.value.exit_code, stop.value.step, stop.value.checkpoint.name) == (130, 2, "step-00000002")
    torch.manual_seed(0)
    with pytest.raises(Interrupted) as stop:
        train(chosen, tmp_path / "parts", resume=True, observer=Stops(5, signal.SIGTERM))
    assert (stop.value.exit_code, stop.value.step) == (143, 5)
    summary = train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]
    assert summary.wall_s == log.read(tmp_path / "parts" / "log.jsonl")[-1]["elapsed_s"]


@pytest.mark.parametrize(
    ("method", "init", "quantization"),
    [
        ("lora", "pissa", "none"),
        ("dora", "pissa", "none"),
        ("lora", "kaiming", "nf4"),
        ("lora", "loftq", "nf2"),
        ("dora", "loftq", {"default": "nf4", "block_size": 16, "up": "int8"}),
    ],
)
def test_a_resumed_run_finds_no_start_again(
    method: str, init: str, quantization: Any, source: Path, tmp_path: Path, monkeypatch
):
    import signal

    keys = make_recipe(source, {method: {"rank": 2, "init": init}}, max_steps=6)
    chosen = recipe.load({**keys, "quantization": quantization})
    train(chosen, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "parts", observer=Stops(3, signal.SIGINT))
    # Another machine's decomposition is another one in its last bits and signs.
    monkeypatch.setattr(torch.linalg, "svd", lambda *_, **__: pytest.fail("a weight was factorised again"))
    train(chosen, tmp_path / "parts", resume=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    adapters = [(tmp_path / name / "adapter" / "adapter.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_a_run_without_a_checkpoint_begins_again(source: Path, tmp_path: Path):
    chosen = recipe.load(make_recipe(source, max_steps=3))
    train(chosen, tmp_path / "whole")
    (tmp_path / "run").mkdir()
    files.write_text(tmp_path / "run" / "recipe.yaml", chosen.to_yaml())
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 1, "loss": 7.0}\n{"st')
    notices = Told()
    train(chosen, tmp_path / "run", resume=True, observer=notices)
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert any(name == "notice" and "begins again" in value for name, value in notices.events)


def test_a_finished_run_is_not_trained_again(source: Path, tmp_path: Path):
    chosen = recipe.load(make_recipe(source, max_steps=2))
    first = train(chosen, tmp_path / "run")
    notices = Told()
    assert train(chosen, tmp_path / "run", resume=True, observer=notices) == first
    assert [name for name, _ in notices.events] == ["notice"]


def test_an_earlier_run_is_never_touched(source: Path, tmp_path: Path):
    chosen = recipe.load(make_recipe(source, max_steps=2))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(PeftkitError, match=r"already holds notes.txt: name another") as refused:
        train(chosen, tmp_path / "run")
    assert "--resume" not in str(refused.value)
    with pytest.raises(PeftkitError, match=r"no run to resume.*holds no recipe.yaml: name the run's") as refused:
        train(chosen, tmp_path / "run", resume=True)
    assert "Leave out --resume" not in str(refused.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    train(chosen, tmp_path / "other")
    with pytest.raises(PeftkitError, match=r"already holds adapter, .*: give --resume to continue that run"):
        train(chosen, tmp_path / "other")


def test_measurements_of_the_base_may_be_there(source: Path, tmp_path: Path):
    (tmp_path / "run" / "eval").mkdir(parents=True)
    train(recipe.load(make_recipe(source, max_steps=1)), tmp_path / "run")
    assert (tmp_path / "run" / "eval").is_dir()


@pytest.mark.parametrize("state", ["missing", "empty", "other"])
def test_nothing_to_resume(state: str, source: Path, tmp_path: Path):
    if state != "missing":
        (tmp_path / "run").mkdir()
    if state == "other":
        (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(PeftkitError, match="no run to resume"):
        train(recipe.load(make_recipe(source, max_steps=2)), tmp_path / "run", resume=True)
    assert (tmp_path / "run").exists() == (state != "missing")


@pytest.fixture
def stopped(source: Path, tmp_path: Path) -> Path:
    """A run of 6 steps that was interrupted after step 4, with checkpoints of the steps 2 and 4."""
    import signal

    chosen = recipe.load(make_recipe(source, max_steps=6, save_every=2))
    with pytest.raises(Interrupted):
        train(chosen, tmp_path / "run", observer=Stops(4, signal.SIGINT))
    return tmp_path / "run"


def test_changed_recipe_is_refused_with_its_keys(stopped: Path, source: Path):
    changed = make_recipe(source, "lora", max_steps=6, learning_rate=0.5, save_every=2)
    with pytest.raises(PeftkitError, match=r"method was .*; train.learning_rate was 0.01 and is 0.5 now"):
        train(recipe.load(changed), stopped, resume=True)


def test_what_has_no_part_in_learning_may_change(stopped: Path, source: Path):
    changed = make_recipe(source, max_steps=6, save_every=3, keep_checkpoints=5) | {"eval": {"limit": 3}}
    assert train(recipe.load(changed), stopped, resume=True).steps == 6


def test_changed_data_is_refused(stopped: Path, source: Path):
    write_documents(source / "data", 41)
    try:
        with pytest.raises(PeftkitError, match="the training data changed since"):
            train(recipe.load(stopped / "recipe.yaml"), stopped, resume=True)
    finally:
        write_documents(source / "data")


def test_damaged_checkpoint_is_refused_and_the_older_one_usable(stopped: Path):
    newest = checkpoint.listed(stopped / "checkpoints")[-1]
    path = newest / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    chosen = recipe.load(stopped / "recipe.yaml")
    with pytest.raises(PeftkitError, match=r"adapter.safetensors does not match .* continue from step-00000002"):
        train(chosen, stopped, resume=True)
    for item in newest.iterdir():
        item.unlink()
    newest.rmdir()
    assert train(chosen, stopped, resume=True).steps == 6


def test_divergence_keeps_the_last_checkpoint(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sound = Plain.loss

    class Breaks(Silent):
        def saved(self, path: Path) -> None:
            monkeypatch.setattr(Plain, "loss", lambda *_: Loss(torch.tensor(float("nan"), requires_grad=True), 1))

    chosen = recipe.load(make_recipe(source, max_steps=6, save_every=2))
    with pytest.raises(PeftkitError, match="the loss is nan at step 3 of 6"):
        train(chosen, tmp_path / "run", observer=Breaks())
    monkeypatch.setattr(Plain, "loss", sound)
    checkpoint.read(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert train(chosen, tmp_path / "run", resume=True).steps == 6


def test_time_decides_about_checkpoints_where_the_recipe_does_not(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(session, "SAVE_SECONDS", 0.0)
    train(recipe.load(make_recipe(source, max_steps=3)), tmp_path / "run")
    assert [path.name for path in checkpoint.listed(tmp_path / "run" / "checkpoints")] == [
        *("step-00000002", "step-00000003")
    ]


def test_data_that_trains_nothing_is_refused_before_anything_is_written(source: Path, tmp_path: Path):
    keys = make_recipe(source, max_steps=2)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "completion": " "}\n')
    keys["dataset"] = {"name": "jsonl", "path": str(tmp_path / "data.jsonl")}
    with pytest.raises(PeftkitError):
        train(recipe.load(keys), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_examples_longer_than_the_model_are_refused(source: Path, tmp_path: Path):
    keys = make_recipe(source, max_steps=2)
    keys["model"]["init"]["max_position_embeddings"] = 20
    with pytest.raises(PeftkitError, match=r"positions for 20: set train.max_length to 20"):
        train(recipe.load(keys), tmp_path / "run")
    keys["train"]["max_length"] = 20
    assert train(recipe.load(keys), tmp_path / "run").steps == 2


def test_output_that_is_a_file_or_cannot_be_made(source: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    chosen = recipe.load(make_recipe(source, max_steps=1))
    with pytest.raises(PeftkitError, match="is a file"):
        train(chosen, tmp_path / "file")
    with pytest.raises(PeftkitError, match="file"):
        train(chosen, tmp_path / "file" / "run")


def test_missing_validation_split_is_told_or_refused(source: Path, tmp_path: Path):
    keys = make_recipe(source, max_steps=1)
    keys["dataset"]["path"] = str(source / "data" / "train.jsonl")
    notices = Told()
    assert train(recipe.load(keys), tmp_path / "run", observer=notices).losses["validation"] is None
    assert any("validation loss is left out" in value for name, value in notices.events if name == "notice")
    keys["train"]["evaluate_every"] = 1
    with pytest.raises(PeftkitError, match="validation"):
        train(recipe.load(keys), tmp_path / "other")


def test_gradient_checkpointing_changes_no_loss(source: Path, tmp_path: Path):
    for checkpointing in (False, True):
        keys = make_recipe(source, "lora", max_steps=3, gradient_checkpointing=checkpointing)
        train(recipe.load(keys), tmp_path / str(checkpointing))
    first, second = (log.read(tmp_path / name / "log.jsonl") for name in ("False", "True"))
    assert [r["loss"] for r in first] == pytest.approx([r["loss"] for r in second], abs=1e-6)


def test_resolved_recipe_is_plain_yaml(source: Path, tmp_path: Path):
    train(recipe.load(make_recipe(source, max_steps=1)), tmp_path / "run")
    tree = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert tree["train"]["max_steps"] == 1


def test_a_prompt_starts_as_the_text_that_a_recipe_gives(source: Path) -> None:
    """The ids come from the model's tokenizer, which has 3 special tokens in front of the 256 bytes."""
    chosen = make_recipe(source, {"prompt-tuning": {"length": 5, "init": "text", "text": "red"}})
    prepared = preparation.prepare(recipe.load(chosen))
    ids = prepared.loaded.tokenizer("redre", add_special_tokens=False)["input_ids"]
    table = prepared.loaded.model.get_input_embeddings().weight
    ((_, prompt),) = prepared.adaptation.parameters()
    assert torch.equal(prompt, table[ids])
    assert prepared.adaptation.methods[0].options()["text_ids"] == ids[:3]
    assert plan(recipe.load(chosen)).trainable == 5 * 16
    chosen["method"] = {"prompt-tuning": {"init": "text", "text": ""}}
    for reader in (preparation.prepare, plan):
        with pytest.raises(PeftkitError, match="prompt-tuning: text is ''"):
            reader(recipe.load(chosen))
