"""LLaMA-Factory: the YAML that `llamafactory-cli train` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.conversion.readers import arguments
from peftkit.conversion.tool import TOOLS, Config, Tool
from peftkit.errors import PeftkitError

SILENT = {"overwrite_cache", "preprocessing_num_workers", "plot_loss", "flash_attn", "cache_dir"}
INDEX = "dataset_info.json"


class LlamaFactory(Tool):
    """Supervised fine-tuning by LoRA or in full."""

    name = "LLaMA-Factory"
    markers = frozenset({"stage", "finetuning_type", "lora_target", "cutoff_len", "lora_rank", "dataset_dir"})

    def recipe(self, config: Config) -> dict[str, Any]:
        stage = config.take("stage", "sft")
        if stage != "sft":
            raise PeftkitError(
                f"{config.place}: stage: found {stage!r}; allowed: sft, since recipes learn from answers."
            )
        config.drop(SILENT)
        config.notes += [
            f"template: {name!r} is left out; the model's own chat template is taken"
            for name in [config.take("template")]
            if name
        ]
        bits = config.number("quantization_bit", 0)
        if bits not in (0, 4, 8):
            raise PeftkitError(f"{config.place}: quantization_bit: found {bits!r}; allowed: 4, 8.")
        return {
            "model": arguments.model(config, "model_name_or_path"),
            "method": method(config),
            "quantization": arguments.quantization(config, bits == 4, bits == 8),
            "dataset": dataset(config),
            "train": {
                **arguments.trainer(
                    config, rate=5e-5, checkpointing=not config.take("disable_gradient_checkpointing", False)
                ),
                "max_length": config.number("cutoff_len", 2048),
            },
            **({"output": output} if (output := config.take("output_dir")) else {}),
        }


def method(config: Config) -> dict[str, Any] | str:
    """Return what `finetuning_type` names; alpha is twice the rank there where it is not given."""
    kind = config.take("finetuning_type", "lora")
    if kind == "full":
        return "full"
    if kind != "lora":
        raise PeftkitError(f"{config.place}: finetuning_type: found {kind!r}; allowed: full, lora.")
    rank = config.number("lora_rank", 8)
    options = {
        "rank": rank,
        "alpha": float(config.number("lora_alpha", 2 * rank)),
        "dropout": config.number("lora_dropout"),
        "targets": arguments.targets(config, "lora_target") or "linear",
        "rank_stabilised": config.take("use_rslora"),
        "init": "pissa-fast" if config.take("pissa_init", False) else None,
    }
    return arguments.lora(
        config, options, dora=config.take("use_dora", False), ratio=config.number("loraplus_lr_ratio")
    )


def dataset(config: Config) -> dict[str, Any]:
    """Return the first data set that is named, by the file that `dataset_info.json` gives for it."""
    named = config.take("dataset", "")
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PeftkitError(f"{config.place}: dataset: found {named!r}; allowed: names, with commas between them.")
    folder = Path(str(config.take("dataset_dir", "data")))
    if len(names) > 1:
        config.notes.append(f"dataset: of {len(names)} sets only '{names[0]}' is taken: put the files in one folder")
    path = None
    if names[0]:
        index = files.read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
        entry = index.get(names[0]) if isinstance(index, dict) else None
        file = entry.get("file_name") if isinstance(entry, dict) else None
        path = str(folder / (file if isinstance(file, str) else names[0]))
        if isinstance(entry, dict) and entry.get("columns"):
            config.notes.append(f"dataset: the columns that {INDEX} gives are not translated: see dataset.columns")
    limit = config.number("max_samples")
    return arguments.data(config, path, limit=limit, validation=arguments.share(config, "val_size"))


TOOLS.add("llama-factory", LlamaFactory())
