"""How a recipe says the storage of frozen weights: every form means what it says, and mistakes are told."""

from __future__ import annotations

import pytest

from peftkit.errors import PeftkitError
from peftkit.models.quantize import Quantization
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import load

BASE = {"model": "bundled/tiny", "method": "lora", "dataset": "bundled/e2e"}
NF4 = {"block_size": 64, "double_quant": True}


def section(quantization, *overrides, **keys):
    return load({**BASE, **keys, "quantization": quantization}, overrides)


def packs(recipe):
    return Quantization.of(recipe.quantization).packs


@pytest.mark.parametrize(
    ("written", "options", "modules"),
    [
        ("nf4", NF4, {}),
        ({"format": "nf4"}, NF4, {}),
        ({"default": "nf4", "block_size": 128}, {**NF4, "block_size": 128}, {}),
        ({"format": "nf4", "options": {"double_quant": False}}, {**NF4, "double_quant": False}, {}),
        ({"default": "nf4", "lm_head": "none", "layers.0.*": "int8"}, NF4, {"lm_head": "none", "layers.0.*": "int8"}),
        ({"format": "nf4", "modules": {"up": "int4"}}, NF4, {"up": "int4"}),
        ({"format": "nf4", "up": {"format": "int4", "group_size": 32}}, NF4, {"up": "int4"}),
    ],
)
def test_every_form_means_the_same_section_which_loads_again(written, options, modules, tmp_path):
    recipe = section(written)
    assert recipe.quantization.format == "nf4"
    assert recipe.quantization.options == options
    assert {pattern: choice.format for pattern, choice in recipe.quantization.modules.items()} == modules
    assert packs(recipe)
    if isinstance(written, dict) and isinstance(written.get("up"), dict):
        assert recipe.quantization.modules["up"].options["group_size"] == 32
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_every_format_is_a_part_to_include(name):
    recipe = load({**BASE, "include": f"quantization/{name}"})
    assert Quantization.of(recipe.quantization) == Quantization(QUANTIZERS[name]())


def test_nothing_is_packed_where_nothing_is_said():
    assert not packs(load(BASE))
    assert not packs(section("none"))
    assert packs(section({"format": "none", "up": "int8"}))


def test_an_override_changes_an_option():
    assert section("nf4", "quantization.block_size=32").quantization.options["block_size"] == 32
    assert section("nf4", "quantization=int8").quantization.format == "int8"


def test_the_init_moves_into_the_methods_that_have_one_and_set_none(tmp_path):
    recipe = section({"format": "nf2", "init": "loftq"}, method=["lora", {"dora": {"init": "pissa"}}, "prompt-tuning"])
    assert [choice.options.get("init") for choice in recipe.method] == ["loftq", "pissa", "vocabulary"]
    assert recipe.quantization.init is None
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("nf5", "quantization.format: found 'nf5'.*did you mean 'nf4'"),
        ({"format": "nf4", "block_siz": 64}, "quantization.block_siz: unknown key;.*did you mean 'block_size'"),
        ({"format": "nf4", "block_size": 65}, "quantization.block_size: found 65; allowed: a power of two"),
        ({"format": "nf4", "double_quant": "yes"}, "quantization.double_quant: found 'yes'; allowed: true or false"),
        ({"format": "nf4", "default": "nf4"}, "quantization.default: found beside 'format'"),
        ({"format": "none", "block_size": 64}, "quantization.block_size: unknown key"),
        ({"format": "nf4", "up": "int9"}, "quantization.up.format: found 'int9'"),
        ({"format": "nf4", "up": {"format": "int4", "groups": 3}}, "quantization.up.groups"),
        ({"format": 4}, "quantization.format: found 4"),
        (["nf4"], "quantization: found a list"),
        ({"format": "nf4", "init": 3}, "quantization.init: found 3"),
    ],
)
def test_mistakes_are_told_at_their_key(written, told):
    with pytest.raises(PeftkitError, match=told):
        section(written)


def test_an_init_that_no_method_has_is_told():
    with pytest.raises(PeftkitError, match=r"quantization\.init: found loftq, and no chosen method has an init"):
        section({"format": "nf2", "init": "loftq"}, method="vera")


def test_a_calibration_is_written_where_it_is_used_and_loads_again(tmp_path):
    recipe = section({"format": "gptq", "bits": 2}, calibration={"samples": 7})
    assert recipe.quantization.options["bits"] == 2
    assert recipe.calibration.samples == 7
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load(tmp_path / "recipe.yaml") == recipe
    assert "calibration" not in section("gptq").to_yaml()
    section({"format": "none", "up": "awq"}, calibration={"samples": 7})


@pytest.mark.parametrize(
    ("written", "calibration", "told"),
    [
        (
            "gptq",
            {"sampels": 3},
            r"calibration\.sampels: unknown key; allowed: samples, seed, weights; did you mean",
        ),
        ("gptq", {"samples": 0}, r"calibration\.samples: found 0.*allowed: a whole number from 1"),
        ("gptq", {"seed": "x"}, r"calibration\.seed: found 'x'.*allowed: a whole number from 0"),
        (
            "gptq",
            {"weights": "no/such"},
            r"calibration\.weights: found 'no/such', where no calibrated base is",
        ),
        ("nf4", {"samples": 3}, "calibration: found, and nothing chosen looks at examples; allowed with awq, gptq"),
        ({"format": "gptq", "bits": 8}, {}, r"quantization\.bits: found 8; allowed: 2, 3, 4"),
        ({"format": "gptq", "bit": 4}, {}, r"quantization\.bit: unknown key;.*did you mean 'bits'"),
        ("gqtp", {}, r"quantization\.format: found 'gqtp'.*did you mean 'gptq'"),
    ],
    ids=str,
)
def test_a_wrong_calibration_is_told_where_it_stands(written, calibration, told):
    with pytest.raises(PeftkitError, match=told):
        section(written, **({"calibration": calibration} if calibration else {}))
