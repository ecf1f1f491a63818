"""The law over every family of decoders that the installed transformers knows, and every method on each.

What was measured of them before there was a law, and the test that holds each row now:

| what | test |
|---|---|
| LoRA on `linear`, three steps | `test_losses_and_gradients`, `test_every_method` |
| LoRA as in the five-line recipe | `test_the_recipe_trains_and_merges` |
| prefix-tuning, soft caps and sinks included | `test_few_methods`, `test_every_method` |
| serial-adapter, pfeiffer-adapter, compacter, (IA)³, parallel-adapter | `test_few_methods`, `test_every_method` |
| five prompts in one batch, one token included | `test_answers_are_the_likeliest_without_a_cache` |
| `validate` and `estimate` in fp32 | `test_a_run_on_nf4_merges_and_is_foretold` |
| nf4, then merge | `test_a_run_on_nf4_merges_and_is_foretold` |
| image-text checkpoints, text data alone | all of them, on the families of `zoo.IMAGE_TEXT` |
| fused elementwise functions: losses and gradients | `test_losses_and_gradients` |

`make test` holds one family of each kind to it, and `make test-all` all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import family_runs
import pytest
from draw import marked, some
from family_checks import Held, answers, computes_as_plain, holds
from model_folders import section
from storages import needed

import zoo
from pages.models import REASONS
from peftkit.errors import PeftkitError
from peftkit.families import check
from peftkit.method import METHODS
from peftkit.models.load import load
from peftkit.models.quantize import Quantization, quantize
from peftkit.ports.linear import Delta

KINDS = {
    "llama": "dense",
    "falcon": "fused queries, keys and values of one key head",
    "bloom": "linear biases in the place of positions",
    "opt": "learned positions",
    "gpt2": "transposed weights",
    "mixtral": "experts",
    "qwen2_moe": "experts with a shared one beside",
    "deepseek_v3": "latent attention",
    "mamba": "state space",
    "jamba": "hybrid of state space and attention, with experts",
    "qwen3_5_text": "hybrid of linear attention and attention",
    "lfm2": "convolution and attention",
    "gpt_oss": "sinks",
    "gemma3": "images and text",
}
"""The families of `make test`, one of each kind."""
NAMED = (
    *("gemma3", "gemma4", "idefics3", "internvl", "lfm2_vl", "llama4", "llava", "mistral3", "qwen2_5_vl"),
    *("qwen3_5", "qwen3_vl", "smolvlm"),
)
"""Families of images and text that are held to every method; the decoders of the others are those of text alone."""
FEW = ("lora", "ia3", "serial-adapter", "prefix-tuning", "prompt-tuning")
"""One method of each port."""
REFUSED = {
    "mamba": {"prefix-tuning": "no attention to enter"},
}
"""What the families of `make test` refuse of the few methods; all else they take."""
SEEN_AHEAD = ("cpmant", "xlnet")
"""Families whose tokens see those behind them: a run that predicts the next one is refused."""
FAMILIES = marked(zoo.made(), KINDS)
TRAINED = [name for name in zoo.made() if name not in SEEN_AHEAD]
DECODERS = marked(TRAINED, KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a function that writes the checkpoint of a family, once, into a folder of its own."""
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            written[family] = zoo.write(tmp_path_factory.mktemp(family) / "model", family)
        return written[family]

    return folder


def held(folder: Path, like: str | None = None) -> Held:
    """Load a model for its checks, stored as the method `like` needs it."""
    loaded = load(section(folder))
    if like is not None and METHODS[like].needs is not None:
        quantize(loaded.module, Quantization(needed([like])))
    return Held(loaded.model, loaded.tokenizer, folder.parent / "adapter")


@pytest.mark.parametrize("family", KINDS)
def test_few_methods(family: str, folders: Any):
    subject = held(folders(family))
    found = {name: holds(subject, name) for name in FEW}
    assert {name: word for name, word in found.items() if word != "y"} == REFUSED.get(family, {})


@pytest.mark.parametrize("family", marked(["llama", "qwen3_next"], ["llama"]))
def test_a_merge_that_is_a_little_off_is_seen(family: str, folders: Any, monkeypatch: pytest.MonkeyPatch):
    """By less than a model may make of the rounding of fp32."""
    right, subject = Delta.merge, held(folders(family))

    def wrong(self: Any, weight: Any, bias: Any) -> Any:
        merged, bias = right(self, weight, bias)
        return merged + 1e-3 * (merged - weight), bias

    assert holds(subject, "lora", whole=False) == "y"
    monkeypatch.setattr(Delta, "merge", wrong)
    with pytest.raises(AssertionError, match="merged, it gives other logits"):
        holds(subject, "lora", whole=False)


@pytest.mark.thorough
@pytest.mark.parametrize("family", [name for name in zoo.made() if name not in zoo.IMAGE_TEXT or name in NAMED])
def test_every_method(family: str, folders: Any):
    folder = folders(family)
    subject, faults = held(folder), []
    for name in METHODS.names():
        try:
            word = holds(held(folder, name) if METHODS[name].needs else subject, name)
            assert word == "y" or word in REASONS, word
        except Exception as error:  # one cell says nothing of the others
            faults.append(f"{name}: {type(error).__name__}: {error}")
            subject = held(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("family", DECODERS)
def test_losses_and_gradients(family: str, folders: Any):
    computes_as_plain(held(folders(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_likeliest_without_a_cache(family: str, folders: Any):
    subject = held(folders(family))
    answers(subject)
    answers(subject, batch_size=2)


@pytest.mark.usefixtures("few_validation_examples")
@pytest.mark.parametrize("family", DECODERS)
def test_the_recipe_trains_and_merges(family: str, folders: Any, tmp_path: Path):
    folder = folders(family)
    family_runs.trains(family, folder, tmp_path / "run")
    family_runs.merges(family, folder, tmp_path / "run", tmp_path / "merged")


@pytest.mark.thorough
@pytest.mark.parametrize("family", SEEN_AHEAD)
def test_what_sees_ahead_is_not_trained(family: str, folders: Any, tmp_path: Path):
    with pytest.raises(PeftkitError, match="see those behind them"):
        family_runs.trains(family, folders(family), tmp_path / "run", {"lora": {"targets": "*"}})


@pytest.mark.usefixtures("few_validation_examples")
@pytest.mark.parametrize("family", marked(TRAINED, some("a run on nf4", list(KINDS), 5)))
def test_a_run_on_nf4_merges_and_is_foretold(family: str, folders: Any, tmp_path: Path):
    folder = folders(family)
    family_runs.merges_packed(family, folder, tmp_path / "run", tmp_path / "merged")
    family_runs.plans(family, folder, tmp_path / "run")


def test_at_most_a_tenth_cannot_be_made():
    for every in (zoo.families(), zoo.IMAGE_TEXT):
        assert len([name for name in every if name in zoo.UNMADE]) <= len(every) / 10
    assert set(NAMED) <= set(zoo.made())
    assert set(zoo.UNMADE) <= {*zoo.families(), *zoo.IMAGE_TEXT}


@pytest.mark.usefixtures("few_validation_examples")
@pytest.mark.parametrize("family", zoo.NOT_CAUSAL)
def test_a_model_whose_tokens_see_those_behind_them_is_refused(family: str, folders: Any, tmp_path: Path):
    with pytest.raises(PeftkitError, match="see those behind them"):
        family_runs.trains(family, folders(family), tmp_path / "run")


@pytest.mark.parametrize("family", zoo.REFUSED)
def test_what_is_no_causal_decoder_is_refused(family: str):
    with pytest.raises(PeftkitError, match=f"{family} {zoo.REFUSED[family]}"):
        check(zoo.config_of(family), "config.json")


@pytest.mark.thorough
@pytest.mark.parametrize("family", zoo.UNMADE)
def test_what_is_listed_as_unmade_cannot_be_made(family: str, folders: Any):
    with pytest.raises(Exception):  # noqa: B017 whatever transformers raises
        answers(held(folders(family)))
