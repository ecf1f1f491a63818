"""Every form of export: its report is true, what it wrote opens with the logits it promises, and it leaves no ruins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import write_model

from peftkit import files
from peftkit import recipe as recipes
from peftkit.adaptation import attach, save_adapter
from peftkit.errors import PeftkitError
from peftkit.export import FORMATS, export
from peftkit.export.bitdelta import DESCRIPTION
from peftkit.export.hf_peft import CONFIGURATION
from peftkit.export.hf_peft import load as load_hf_peft
from peftkit.export.packed import quantize
from peftkit.models.load import load
from peftkit.recipe import ModelSection
from peftkit.tensor_file import TensorFile

SHORT = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
IDS = torch.arange(3, 40)[None]
METHODS: tuple[Any, ...] = ({"lora": {"targets": "attention"}}, "full")
"""Of whose runs each form takes the first that it can carry."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, torch.Tensor]:
    """Run folders with an adapter of random values, and the logits of each adapted model."""
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, torch.Tensor]:
    """The same over a base in bfloat16 that is stored in several files."""
    return make_runs(tmp_path_factory.mktemp("sharded"), dtype=torch.bfloat16, max_shard_size="20KB")


def make_runs(folder: Path, **storage: Any) -> dict[Path, torch.Tensor]:
    """Write a base as told and runs on it; return their folders with the logits."""
    name = str(write_model(folder / "base", **storage))
    made = {}
    for number, method in enumerate(METHODS):
        run = folder / str(number)
        recipe = recipes.load(
            {"model": {"name": name}, "method": method, "dataset": {"name": "bundled/e2e", "limit": 4}}
        )
        files.write_text(run / "recipe.yaml", recipe.to_yaml())
        loaded = load(recipe.model)
        adaptation = attach(loaded.model, recipe.methods())
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
            made[run] = loaded.model(IDS).logits
        described = {"name": loaded.name, "fingerprint": loaded.fingerprint, "quantization": loaded.storage}
        save_adapter(adaptation, run / "adapter", described)
    return made


def written(name: str, runs: dict[Path, torch.Tensor], output: Path) -> tuple[Path, dict[str, Any]]:
    """Export the first run that the form takes; return it and the report."""
    reasons = []
    for run in runs:
        try:
            return run, export(run, output, name)
        except PeftkitError as error:
            reasons.append(str(error))
        assert not output.exists(), reasons
    raise AssertionError(f"{name} takes no run: {reasons}")


def reopened(folder: Path, run: Path) -> torch.Tensor | None:
    """Return the logits of what is a folder of a model or of an adapter, by the files in it; None of anything else."""
    if (folder / CONFIGURATION).is_file():
        model = load(recipes.load(run / "recipe.yaml").model).model
        load_hf_peft(folder, model)
    elif (folder / "config.json").is_file():
        model = load(ModelSection(name=str(folder))).model
    else:
        return None
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", FORMATS.names())
def test_what_is_written_opens_as_the_report_says(name, runs, tmp_path):
    run, report = written(name, runs, tmp_path / "out")
    assert (report["format"], report["output"]) == (name, str(tmp_path / "out"))
    assert json.loads(json.dumps(report)) == report
    assert any((tmp_path / "out").iterdir())
    logits = reopened(tmp_path / "out", run)
    if logits is not None:
        # The report's difference is one on sample prompts, and these are others.
        bound = report.get("bound") or 4 * report["max_difference"]
        assert report["max_difference"] <= bound
        assert (logits - runs[run]).abs().max() <= bound * max(1.0, report["scale"])


@pytest.mark.parametrize("name", FORMATS.names())
def test_configuration_index_and_headers_agree(name, sharded, tmp_path):
    written(name, sharded, tmp_path / "out")
    agree(tmp_path / "out")


@pytest.mark.parametrize("storage", [{}, {"dtype": torch.float16, "max_shard_size": "20KB"}])
def test_those_of_a_packed_model_agree(storage, tmp_path):
    quantize(str(write_model(tmp_path / "base", **storage)), "int8", tmp_path / "out")
    agree(tmp_path / "out")


def agree(folder: Path) -> None:
    """Hold whatever a folder's JSON files say of tensors to the headers of the files that hold them."""
    headers = {path.name: TensorFile(path) for path in folder.glob("*.safetensors")}
    tensors = {key: (name, file) for name, file in headers.items() for key in file.names}
    assert sum(len(file.names) for file in headers.values()) == len(tensors), "a tensor is in two files"
    said = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    if index := said.get("model.safetensors.index.json"):
        assert index["weight_map"] == {key: name for key, (name, _) in tensors.items()}
        sizes = [file.read(key).nbytes for key, (_, file) in tensors.items()]
        assert index["metadata"]["total_size"] == sum(sizes)
    else:
        assert len(headers) <= 1
    if configuration := said.get("config.json"):
        # Packed weights are tensors of other names.
        plain = {file.dtype(key) for key, (_, file) in tensors.items() if key.endswith((".weight", ".bias"))}
        assert plain == {SHORT[configuration["dtype"]]}
    if adapter := said.get(CONFIGURATION):
        ranks = {file.shape(key)[0] for key, (_, file) in tensors.items() if ".lora_A." in key}
        assert ranks == {adapter["r"], *adapter.get("rank_pattern", {}).values()}
        paths = {key.removeprefix("base_model.model.").rsplit(".", 2)[0] for key in tensors}
        assert paths == set(adapter["target_modules"])
    for path, (rows, columns) in said.get(DESCRIPTION, {}).get("matrices", {}).items():
        assert tensors[f"{path}.bits"][1].shape(f"{path}.bits") == [-(-rows * columns // 8)]
        assert tensors[f"{path}.scale"][1].shape(f"{path}.scale") == []


@pytest.mark.parametrize("name", FORMATS.names())
def test_it_writes_the_same_twice_and_into_a_new_folder_alone(name, runs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run, _ = written(name, runs, first)
    export(run, second, name)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for path in names:
        # Archives hold the time at which they were made.
        assert path.suffix == ".npz" or (first / path).read_bytes() == (second / path).read_bytes(), path
    before = {path: (first / path).read_bytes() for path in names}
    with pytest.raises(PeftkitError, match="first"):
        export(run, first, name)
    assert before == {path: (first / path).read_bytes() for path in names}


@pytest.mark.parametrize("name", FORMATS.names())
def test_what_is_no_run_is_refused_and_leaves_nothing(name, tmp_path):
    with pytest.raises(PeftkitError, match=r"no recipe\.yaml"):
        export(tmp_path, tmp_path / "out", name)
    assert not (tmp_path / "out").exists()
