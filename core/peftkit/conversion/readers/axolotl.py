"""Axolotl: the YAML that `axolotl train` takes."""

from __future__ import annotations

from typing import Any

from peftkit.conversion.readers import arguments
from peftkit.conversion.tool import TOOLS, Config, Tool
from peftkit.errors import PeftkitError

SILENT = {
    *("logging_steps", "flash_attention", "tf32", "dataset_prepared_path", "strict", "model_type", "tokenizer_type"),
    *("sample_packing", "pad_to_sequence_len", "eval_sample_packing", "group_by_length", "saves_per_epoch"),
    *("gradient_checkpointing_kwargs", "eval_batch_size"),
}
"""Keys that change no number, or say how examples are packed, which a run does by itself."""


class Axolotl(Tool):
    """Supervised fine-tuning by LoRA, QLoRA or in full."""

    name = "Axolotl"
    markers = frozenset({"base_model", "adapter", "sequence_len", "micro_batch_size", "datasets", "val_set_size"})

    def recipe(self, config: Config) -> dict[str, Any]:
        special = config.take("special_tokens")
        config.notes += ["special_tokens are left out; the tokenizer's own are taken"] if special else []
        config.drop(SILENT)
        adapter = config.take("adapter", "full")
        four, eight = bool(config.take("load_in_4bit")), bool(config.take("load_in_8bit"))
        section = {
            "model": arguments.model(config, "base_model", "revision_of_model"),
            "method": method(config, adapter),
            "quantization": arguments.quantization(config, four, eight),
            "dataset": dataset(config),
            "train": train(config),
        }
        output = config.take("output_dir")
        return {**section, "output": output} if output else section


def method(config: Config, adapter: str) -> dict[str, Any] | str:
    """Return what `adapter` names."""
    if adapter == "full":
        return "full"
    if adapter not in ("lora", "qlora"):
        raise PeftkitError(
            f"{config.place}: adapter: found {adapter!r}; allowed: lora, qlora, or none for all weights."
        )
    linear = config.take("lora_target_linear", False)
    names = arguments.targets(config, "lora_target_modules")
    options = {
        "rank": config.number("lora_r"),
        "alpha": float(config.number("lora_alpha", 16)),
        "dropout": config.number("lora_dropout"),
        "targets": "linear" if linear else names,
        "rank_stabilised": config.take("peft_use_rslora"),
    }
    return arguments.lora(
        config, options, dora=config.take("peft_use_dora", False), ratio=config.number("loraplus_lr_ratio")
    )


def dataset(config: Config) -> dict[str, Any]:
    """Return the first of `datasets`."""
    sets = config.take("datasets", [])
    if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
        raise PeftkitError(f"{config.place}: datasets: found {sets!r}; allowed: a list of mappings with a path.")
    if len(sets) > 1:
        config.notes.append(f"datasets: of {len(sets)} sets only the first is taken: put the files in one folder")
    first = dict(sets[0]) if sets else {}
    path = first.pop("path", None)
    if first:
        config.notes.append(
            f"datasets: {', '.join(first)} of the first set are not translated; the form of records is seen by their "
            "keys, and dataset.columns reads keys of other names"
        )
    return arguments.data(
        config, None if path is None else str(path), validation=arguments.share(config, "val_set_size")
    )


def train(config: Config) -> dict[str, Any]:
    """Return the section `train`."""
    steps, every = config.number("max_steps", -1), config.number("eval_steps")
    packing = {"max_steps": steps} if steps > 0 else {"epochs": config.number("num_epochs", 1)}
    config.drop({"num_epochs"} if steps > 0 else ())
    keys = {
        **packing,
        "learning_rate": config.number("learning_rate"),
        "schedule": config.choose("lr_scheduler", arguments.SCHEDULES, "cosine"),
        "warmup": arguments.warmup(config),
        "optimizer": config.choose("optimizer", arguments.OPTIMIZERS),
        "weight_decay": config.number("weight_decay"),
        "batch_examples": config.number("micro_batch_size", 1),
        "accumulation": config.number("gradient_accumulation_steps", 1),
        "max_length": config.number("sequence_len", 512),
        "precision": arguments.precision(config),
        "gradient_checkpointing": bool(config.take("gradient_checkpointing")),
        "compile": config.take("torch_compile"),
        "clip": config.number("max_grad_norm", 1.0) or None,
        "seed": config.number("seed", 42),
        "evaluate_every": every if every is not None and every >= 1 else None,
        "save_every": config.number("save_steps"),
        "keep_checkpoints": config.number("save_total_limit"),
    }
    if every is not None and every < 1:
        config.notes.append(
            f"eval_steps: {every:g}, a part of all steps, has no counterpart; train.evaluate_every is a number"
        )
    if config.take("train_on_inputs"):
        config.notes.append("train_on_inputs: prompts are never trained on here; only answers are")
    return {key: value for key, value in keys.items() if value is not None or key == "clip"}


TOOLS.add("axolotl", Axolotl())
