"""Hugging Face peft: the adapter_config.json of a trained adapter, which says nothing of data and training."""

from __future__ import annotations

from typing import Any

from peftkit.conversion.readers import arguments
from peftkit.conversion.tool import TOOLS, Config, Tool
from peftkit.errors import PeftkitError

SILENT = {
    "task_type",
    "inference_mode",
    "peft_version",
    "auto_mapping",
    "fan_in_fan_out",
    "layers_pattern",
    "qalora_group_size",
}
INITS = {"True": "kaiming", "gaussian": "gaussian", "pissa": "pissa", "olora": "olora", "eva": "eva"}
BIASES = {"none": "none", "all": "all", "lora_only": "adapted"}


class PeftConfiguration(Tool):
    """LoRA, DoRA, (IA)³ and prompt tuning."""

    name = "Hugging Face peft"
    markers = frozenset({"peft_type", "base_model_name_or_path", "inference_mode"})

    def recipe(self, config: Config) -> dict[str, Any]:
        kind = config.take("peft_type")
        if str(kind) not in METHODS:
            raise PeftkitError(
                f"{config.place}: peft_type: found {kind!r}; allowed: {', '.join(METHODS)}. "
                "`peft import FOLDER` reads trained adapters of more kinds."
            )
        config.drop(SILENT)
        return {
            "model": arguments.model(config, "base_model_name_or_path", "revision"),
            "method": METHODS[kind](config),
            "dataset": arguments.data(config, None),
        }


def lora(config: Config) -> dict[str, Any]:
    """Return LoRA or DoRA with the defaults of LoraConfig."""
    layers = config.take("layers_to_transform")
    options = {
        "rank": config.number("r", 8),
        "alpha": float(config.number("lora_alpha", 8)),
        "dropout": config.number("lora_dropout"),
        "targets": arguments.targets(config, "target_modules"),
        "exclude": arguments.targets(config, "exclude_modules"),
        "layers": [layers] if isinstance(layers, int) else layers,
        "bias": config.choose("bias", BIASES),
        "rank_stabilised": config.take("use_rslora"),
        "init": config.choose("init_lora_weights", INITS),
    }
    config.drop({"lora_bias"} if not config.take("lora_bias") else ())
    return arguments.lora(config, options, dora=config.take("use_dora", False))


def ia3(config: Config) -> dict[str, Any]:
    """Return (IA)³: modules whose inputs are scaled stand apart from those whose outputs are."""
    before, every = arguments.targets(config, "feedforward_modules"), arguments.targets(config, "target_modules")
    config.drop({"init_ia3_weights"})
    after = [name for name in every or [] if name not in (before or [])] if isinstance(every, list) else every
    options = {"targets": after, "feedforward": before}
    return {"ia3": {key: value for key, value in options.items() if value is not None}}


def prompt_tuning(config: Config) -> dict[str, Any]:
    """Return prompt tuning; the numbers of the model are its own."""
    config.drop({"token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"})
    length, text = config.number("num_virtual_tokens"), config.take("prompt_tuning_init_text")
    config.drop({"tokenizer_name_or_path"})
    start = {"init": "text", "text": text} if config.take("prompt_tuning_init") == "TEXT" and text else {}
    return {"prompt-tuning": {"length": length, **start}}


METHODS = {"LORA": lora, "IA3": ia3, "PROMPT_TUNING": prompt_tuning}
TOOLS.add("hf-peft", PeftConfiguration())
