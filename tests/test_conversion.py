"""Configurations of other tools: each value at its place in the recipe, and what has no counterpart named."""

from __future__ import annotations

import json

import pytest
import yaml

from peftkit.conversion import TOOLS, convert
from peftkit.errors import PeftkitError
from peftkit.recipe import load
from peftkit_cli.main import main

FACTORY = """\
model_name_or_path: bundled/tiny
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 6
lora_target: q_proj,v_proj
quantization_bit: 4
dataset: mine
dataset_dir: {folder}
template: llama3
cutoff_len: 256
max_samples: 100
val_size: 0.1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
neat_packing: true
"""
AXOLOTL = """\
base_model: bundled/tiny
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
datasets:
  - path: {folder}/mine.jsonl
    type: alpaca
val_set_size: 0.05
sequence_len: 128
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 4
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_steps: 10
bf16: auto
saves_per_epoch: 1
wandb_project: mine
"""
TRL = """\
trl sft \\
  --model_name_or_path bundled/tiny --dataset_name {folder}/mine.jsonl \\
  --use_peft --lora_r 4 --lora_target_modules q_proj dense \\
  --learning-rate=2.0e-4 --max_steps 100 --report_to none --eos_token "<|end|>"
"""


def written(tmp_path, text, name="theirs.yaml"):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.jsonl"}}))
    path = tmp_path / name
    path.write_text(text.replace("{folder}", str(tmp_path)), encoding="utf-8")
    return path


def converted(tmp_path, text, name="theirs.yaml"):
    """Return the recipe as it loads from the text that was written, its method and what was told."""
    done = convert(written(tmp_path, text, name))
    (tmp_path / "ours.yaml").write_text(done.text, encoding="utf-8")
    recipe = load(tmp_path / "ours.yaml")
    return recipe, {choice.name: choice.options for choice in recipe.method}, "\n".join(done.told)


def test_llama_factory(tmp_path):
    recipe, method, told = converted(tmp_path, FACTORY)
    assert (recipe.model.name, recipe.quantization.format) == ("bundled/tiny", "nf4")
    lora = method["lora"]
    assert (lora["rank"], lora["alpha"], list(lora["targets"])) == (6, 12.0, ["q", "v"])
    data, train = recipe.dataset, recipe.train
    assert (data.path, data.limit, data.validation) == (str(tmp_path / "mine.jsonl"), 100, 0.1)
    assert (train.max_length, train.batch_examples, train.accumulation, train.epochs) == (256, 2, 8, 3)
    assert (train.learning_rate, train.schedule, train.warmup, train.precision) == (1e-4, "cosine", 0.1, "bf16")
    assert "neat_packing: True has no counterpart" in told
    assert "template: 'llama3' is left out" in told
    assert "do_train" not in told


def test_llama_factory_by_default_has_all_linear_layers_and_the_schedule_of_transformers(tmp_path):
    recipe, method, told = converted(tmp_path, "model_name_or_path: bundled/tiny\nfinetuning_type: lora\n")
    assert (method["lora"]["alpha"], method["lora"]["targets"]) == (16.0, "linear")
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.warmup) == (5e-5, "linear", 0)
    assert "no data is named" in told


def test_axolotl(tmp_path):
    recipe, method, told = converted(tmp_path, AXOLOTL)
    lora, train = method["lora"], recipe.train
    assert (lora["rank"], lora["alpha"], lora["dropout"], lora["targets"]) == (32, 16.0, 0.05, "linear")
    assert (recipe.quantization.format, recipe.dataset.validation) == ("nf4", 0.05)
    assert (train.epochs, train.optimizer, train.warmup, train.learning_rate) == (4, "adamw-8bit", 10, 2e-4)
    assert (train.max_length, train.batch_examples, train.accumulation, train.precision) == (128, 2, 4, "auto")
    assert "wandb_project: 'mine' has no counterpart" in told
    assert "type of the first set are not translated" in told
    assert "saves_per_epoch" not in told


def test_trl_on_the_command_line(tmp_path):
    recipe, method, told = converted(tmp_path, TRL, "run.sh")
    lora, train = method["lora"], recipe.train
    assert (lora["rank"], lora["alpha"], lora["dropout"], list(lora["targets"])) == (4, 32.0, 0.05, ["q", "*.dense"])
    assert (train.max_steps, train.epochs, train.learning_rate) == (100, None, 2e-4)
    assert (train.batch_examples, train.max_length, train.gradient_checkpointing) == (8, 1024, True)
    assert "eos_token: '<|end|>' has no counterpart" in told
    assert "here on answers alone" in told


def test_trl_without_peft_trains_everything(tmp_path):
    _, method, told = converted(tmp_path, "model_name_or_path: bundled/tiny\ndataset_name: nowhere/set\n")
    assert list(method) == ["full"]
    assert "there is no file or folder 'nowhere/set'" in told


LORA = {
    "peft_type": "LORA",
    "base_model_name_or_path": "bundled/tiny",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 10,
    "target_modules": ["q_proj", "up_proj"],
    "bias": "lora_only",
    "init_lora_weights": True,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
    "rank_pattern": {},
    "megatron_config": None,
}


def test_adapter_config_of_hugging_face(tmp_path):
    _, method, told = converted(tmp_path, json.dumps(LORA), "adapter_config.json")
    dora = method["dora"]
    assert (dora["rank"], dora["alpha"], dora["bias"], dora["init"]) == (4, 10.0, "adapted", "kaiming")
    assert sorted(dora["targets"]) == ["q", "up"]
    assert "modules_to_save: ['lm_head'] has no counterpart" in told
    assert "megatron_config" not in told
    assert "rank_pattern" not in told


def test_other_adapters_of_hugging_face(tmp_path):
    base = {"base_model_name_or_path": "bundled/tiny"}
    prompt = {**base, "peft_type": "PROMPT_TUNING", "num_virtual_tokens": 7, "token_dim": 192}
    assert converted(tmp_path, json.dumps(prompt), "a.json")[1]["prompt-tuning"]["length"] == 7
    ia3 = {**base, "peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    method = converted(tmp_path, json.dumps(ia3), "a.json")[1]["ia3"]
    assert (list(method["targets"]), list(method["feedforward"])) == (["k"], ["down"])


def test_a_regular_expression_is_told_and_the_default_is_taken(tmp_path):
    text = json.dumps({**LORA, "target_modules": r".*\.(q|v)_proj"})
    _, method, told = converted(tmp_path, text, "adapter_config.json")
    assert list(method["dora"]["targets"]) == ["q", "v"]
    assert "regular expression" in told


def test_every_tool_has_keys_of_its_own():
    seen: set[str] = set()
    for _, tool in TOOLS.items():
        assert tool.markers
        assert not tool.markers & seen
        seen |= tool.markers


def test_bf16_that_is_switched_off_stays_off_and_the_type_of_weights_is_kept(tmp_path):
    text = "model_name_or_path: bundled/tiny\nuse_peft: true\nbf16: false\ndtype: float16\n"
    recipe, _, _ = converted(tmp_path, text)
    assert (recipe.train.precision, recipe.model.dtype) == ("fp32", "float16")


ODD = ([], {}, True, "x", "", -1, 0, 1e999, [[]], {"a": 1}, [1], [None], None)


@pytest.mark.parametrize("text", [FACTORY, AXOLOTL, json.dumps(LORA)], ids=["LLaMA-Factory", "Axolotl", "peft"])
def test_odd_values_of_any_key_are_translated_told_or_refused(tmp_path, text):
    values = yaml.safe_load(text.replace("{folder}", str(tmp_path)))
    ended = set()
    for key in values:
        for odd in ODD:
            path = written(tmp_path, json.dumps({**values, key: odd}), "odd.json")
            try:
                load(yaml.safe_load(convert(path).text))
                ended.add("translated")
            except PeftkitError as error:
                ended.add("refused" if str(path) in str(error) else f"refused without the file: {error}")
    assert ended == {"translated", "refused"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour: red\nsize: 3\n", "found colour, size, which tell no known tool"),
        ("base_model: x\nstage: sft\n", "base_model of Axolotl; stage of LLaMA-Factory"),
        ("model_name_or_path: x\nstage: dpo\n", "stage: found 'dpo'; allowed: sft"),
        ("stage: sft\n", "model_name_or_path: found None"),
        ("base_model: bundled/tiny\nlora_r: many\nadapter: lora\n", "lora_r: found 'many'; allowed: a number"),
        ("base_model: bundled/tiny\nadapter: lora\nlora_r: -1\n", "does not load"),
        ("base_model: bundled/tiny\nadapter: relora\n", "allowed: lora, qlora"),
        ("base_model: bundled/tiny\ndatasets: mine\n", "datasets: found 'mine'"),
        ("base_model: bundled/tiny\nload_in_4bit: true\nload_in_8bit: true\n", "4 and 8 bits at once"),
        ("peft_type: MIRACLE\n", "peft_type: found 'MIRACLE'; allowed: LORA"),
        ("- a\n- b\n", "allowed: a mapping of keys"),
        ("", "empty"),
        ("--use_peft --use_peft", "--use_peft stands twice"),
        ("trl sft --name 'open", "cannot be read"),
    ],
)
def test_what_cannot_be_translated_is_refused(tmp_path, text, said, capsys):
    assert main(["convert-config", str(written(tmp_path, text))]) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_or_writes_and_overwrites_nothing(tmp_path, capsys):
    path, output = written(tmp_path, AXOLOTL), tmp_path / "recipe.yaml"
    assert main(["convert-config", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("# Translated from Axolotl.\nmodel:\n")
    assert "peft: note: wandb_project" in printed.err
    assert main(["convert-config", str(path), "--output", str(output)]) == 0
    assert output.read_text() == printed.out
    assert main(["convert-config", str(path), "--output", str(output)]) == 2
    assert main(["convert-config", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
