"""TRL: the keys of SFTConfig, ModelConfig and ScriptArguments, in YAML or on the command line of `trl sft`."""

from __future__ import annotations

from typing import Any

from peftkit.conversion.readers import arguments
from peftkit.conversion.tool import TOOLS, Config, Tool

SILENT = {"attn_implementation", "dataset_num_proc", "packing", "padding_free"}
"""Keys that say how examples are packed and attention is computed, which a run finds by itself."""


class TRL(Tool):
    """Supervised fine-tuning by LoRA, or in full without `use_peft`."""

    name = "TRL"
    markers = frozenset(
        {"use_peft", "dataset_name", "assistant_only_loss", "completion_only_loss", "bnb_4bit_quant_type"}
    )

    def recipe(self, config: Config) -> dict[str, Any]:
        config.drop(SILENT)
        four, eight = bool(config.take("load_in_4bit")), bool(config.take("load_in_8bit"))
        kind = config.choose("bnb_4bit_quant_type", {"nf4": "nf4", "fp4": "fp4"}, "nf4") or "nf4"
        name = config.take("dataset_name")
        if not config.take("assistant_only_loss", False) and not config.take("completion_only_loss", False):
            config.notes.append("loss: TRL trains on every turn of a conversation by default; here on answers alone")
        section = {
            "model": {**arguments.model(config, "model_name_or_path"), **dtype(config)},
            "method": method(config) if config.take("use_peft", False) else "full",
            "quantization": arguments.quantization(config, four, eight, kind),
            "dataset": arguments.data(config, None if name is None else str(name)),
            "train": {
                **arguments.trainer(config, rate=2e-5, checkpointing=True, floats="bf16"),
                "max_length": config.number("max_length", 1024),
            },
        }
        output = config.take("output_dir")
        return {**section, "output": output} if output else section


def dtype(config: Config) -> dict[str, str]:
    """Return the type of the frozen weights, under its older name too."""
    known = {name: name for name in ("auto", "float32", "bfloat16", "float16")}
    chosen = [config.choose(key, known) for key in ("torch_dtype", "dtype")]
    given = next((name for name in chosen if name is not None), None)
    return {} if given is None else {"dtype": given}


def method(config: Config) -> dict[str, Any]:
    """Return LoRA with the defaults of ModelConfig."""
    options = {
        "rank": config.number("lora_r", 16),
        "alpha": float(config.number("lora_alpha", 32)),
        "dropout": config.number("lora_dropout", 0.05),
        "targets": arguments.targets(config, "lora_target_modules"),
        "rank_stabilised": config.take("use_rslora"),
    }
    return arguments.lora(config, options, dora=config.take("use_dora", False))


TOOLS.add("trl", TRL())
