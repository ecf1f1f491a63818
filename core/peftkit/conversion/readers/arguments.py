"""What configurations of several tools have in common: targets, formats, data, and transformers' TrainingArguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit.conversion.tool import Config
from peftkit.errors import PeftkitError

ROLES = {
    **{f"{name}_proj": name for name in ("q", "k", "v", "o", "gate", "up", "down")},
    **dict.fromkeys(("all", "all-linear"), "linear"),
}
"""Our roles by the usual names of modules; any other name is a pattern."""
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
OPTIMIZERS = {
    **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw-8bit"),
    **dict.fromkeys(("lion", "lion_32bit", "paged_lion_32bit"), "lion"),
    "adafactor": "adafactor",
}
LOGGERS = ("mlflow", "tensorboard", "trackio", "wandb")
SILENT = {
    *("do_train", "do_eval", "do_predict", "logging_steps", "logging_dir", "logging_first_step", "disable_tqdm"),
    *("overwrite_output_dir", "dataloader_num_workers", "dataloader_pin_memory", "ddp_timeout", "tf32"),
    *("per_device_eval_batch_size", "remove_unused_columns", "gradient_checkpointing_kwargs"),
}
"""Keys of TrainingArguments that change no number of a run."""
NO_DATA = "data.jsonl"


def model(config: Config, key: str, revision: str = "model_revision") -> dict[str, Any]:
    """Return the section `model`; PeftkitError where the configuration names none."""
    name = config.take(key)
    if not isinstance(name, str) or not name:
        raise PeftkitError(f"{config.place}: {key}: found {name!r}; allowed: the model's Hugging Face id or folder.")
    kept = {"name": name, "revision": config.take(revision), "trust_remote_code": config.take("trust_remote_code")}
    return {key: value for key, value in kept.items() if value}


def targets(config: Config, key: str) -> list[str] | str | None:
    """Return our targets for names of modules; None where the tool chooses, which the method's default stands for."""
    value = config.take(key)
    if value is None:
        return None
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise PeftkitError(f"{config.place}: {key}: found {value!r}; allowed: names of modules.")
    if any(set(name) & set("()|\\^$+[]") for name in value):
        config.notes.append(
            f"{key}: {','.join(value)!r} is a regular expression, which has no counterpart; the default is taken"
        )
        return None
    ours = list(dict.fromkeys(ROLES.get(name, f"*.{name}") for name in value))
    return "linear" if "linear" in ours else ours


def lora(config: Config, options: Mapping[str, Any], *, dora: bool = False, ratio: Any = None) -> dict[str, Any]:
    """Return the section `method` of LoRA or what it is a part of."""
    kept = {key: value for key, value in options.items() if value is not None}
    if dora and ratio is not None:
        config.notes.append("DoRA together with LoRA+ has no counterpart; DoRA alone is taken")
    if dora:
        return {"dora": kept}
    return {"lora": kept} if ratio is None else {"lora-plus": {**kept, "ratio": ratio}}


def quantization(config: Config, four: bool, eight: bool, kind: str = "nf4") -> str:
    """Return the storage format for the two switches that bitsandbytes has."""
    if four and eight:
        raise PeftkitError(f"{config.place}: found 4 and 8 bits at once; allowed: one of them.")
    return kind if four else "int8" if eight else "none"


def data(config: Config, path: str | None, **keys: Any) -> dict[str, Any]:
    """Return the section `dataset` for a file of one's own, or for a place where a person has to name one."""
    if path is None:
        config.notes.append(f"dataset: no data is named; write your file in the place of {NO_DATA}")
    elif not Path(path).exists():
        config.notes.append(
            f"dataset: there is no file or folder '{path}' here; write where your data are in dataset.path"
        )
    return {"name": "jsonl", "path": path or NO_DATA, **{key: value for key, value in keys.items() if value}}


def share(config: Config, key: str) -> float | None:
    """Return the part that is held out for validation, where the tool has it as a part."""
    value = config.number(key, 0)
    if value >= 1:
        config.notes.append(f"{key}: {value:g} inputs have no counterpart; write their part in dataset.validation")
    return value if 0 < value < 1 else None


def warmup(config: Config) -> float:
    """Return `train.warmup`: of both keys the number of steps counts, as it does there."""
    part, steps = config.number("warmup_ratio", 0), config.number("warmup_steps", 0)
    return steps or part


def logging(config: Config) -> list[str]:
    """Return the loggers of `report_to`."""
    named = config.take("report_to", [])
    names = named if isinstance(named, list) else [named]
    lacking = [name for name in names if name not in (*LOGGERS, "none")]
    config.notes += [f"report_to: {name!r} has no counterpart" for name in lacking]
    return [name for name in names if name in LOGGERS]


def precision(config: Config, default: str = "fp32") -> str:
    """Return `train.precision` of the switches `bf16` and `fp16`."""
    bf16, fp16 = config.take("bf16"), config.take("fp16")
    if "auto" in (bf16, fp16):
        return "auto"
    return "bf16" if bf16 else "fp16" if fp16 else default if bf16 is None else "fp32"


def trainer(config: Config, *, rate: float, checkpointing: bool = False, floats: str = "fp32") -> dict[str, Any]:
    """Return the section `train` of transformers' TrainingArguments, with their defaults where ours are others."""
    steps, strategy = config.number("max_steps", -1), config.take("eval_strategy", "no")
    epochs, every = config.number("num_train_epochs", 3), config.number("eval_steps")
    keys = {
        **({"max_steps": steps} if steps > 0 else {"epochs": epochs}),
        "learning_rate": config.number("learning_rate", rate),
        "schedule": config.choose("lr_scheduler_type", SCHEDULES, "linear"),
        "warmup": warmup(config),
        "optimizer": config.choose("optim", OPTIMIZERS),
        "betas": [config.number("adam_beta1", 0.9), config.number("adam_beta2", 0.999)],
        "eps": config.number("adam_epsilon", 1e-8),
        "weight_decay": config.number("weight_decay"),
        "batch_examples": config.number("per_device_train_batch_size", 8),
        "accumulation": config.number("gradient_accumulation_steps", 1),
        "precision": precision(config, floats),
        "gradient_checkpointing": config.take("gradient_checkpointing", checkpointing),
        "compile": config.take("torch_compile"),
        "clip": config.number("max_grad_norm", 1.0) or None,
        "label_smoothing": config.number("label_smoothing_factor"),
        "seed": config.number("seed", 42),
        "evaluate_every": every if strategy == "steps" else None,
        "save_every": config.number("save_steps"),
        "keep_checkpoints": config.number("save_total_limit"),
        "log": logging(config) or None,
    }
    if strategy == "epoch":
        config.notes.append(
            "eval_strategy: 'epoch' has no counterpart; write a number of steps in train.evaluate_every"
        )
    config.drop(SILENT)
    return {key: value for key, value in keys.items() if value is not None or key == "clip"}
