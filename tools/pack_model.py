"""Pack a pretraining run as a model that ships with the package: `python tools/pack_model.py RUN OUTPUT`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from peftkit import files
from peftkit.errors import PeftkitError
from peftkit.export.model_folder import write_merged
from peftkit.export.trained import Trained, open_run
from peftkit.training.summary import read as read_summary

LIMIT = 8_000_000
"""Bytes that a bundled model may take in all."""
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A small {architecture} language model of {parameters:,} parameters in bfloat16, with its own byte-level BPE tokenizer of
{vocabulary:,} tokens (no text has unknown tokens). It exists to try fine-tuning out: it runs anywhere, and knows
little.

It was trained from scratch by peftkit itself on generated text ({dataset}): {steps:,} steps, {tokens:,} tokens,
{epochs:.3g} epochs, final loss {loss:.3f} nats per token. No text of any published data set was used.

The configuration (`model.init` of the recipe):

```yaml
{init}
```

Rebuild it with `peft train` on the pretraining recipe, then `python tools/pack_model.py RUN OUTPUT`.
"""


def pack(run: Path, output: Path) -> dict[str, Any]:
    """Write the model of a pretraining run to the new folder `output`: bfloat16 weights, tokenizer and a model card.

    Raises PeftkitError where the run did not start from random weights, and above 8 MB in all.
    """
    with files.new_folder(output) as folder:
        trained = open_run(run)
        if trained.recipe.model.init is None:
            raise PeftkitError(f"{run} started from a pretrained model; pack a run whose recipe has `model.init`.")
        parameters = sum(parameter.numel() for parameter in trained.model.parameters())
        report = write_merged(trained, folder, torch.bfloat16, partial(open_run, run, packed=True))
        files.write_text(folder / "README.md", card(trained, run, output.name, parameters))
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > LIMIT:
            raise PeftkitError(f"the model takes {size:,} bytes, and a bundled one at most {LIMIT:,}: make it smaller.")
    return {"output": str(output), "bytes": size, "parameters": parameters, **report}


def card(trained: Trained, run: Path, name: str, parameters: int) -> str:
    """Return the model card: what the model is and how it was made."""
    import yaml

    summary = read_summary(run / "summary.json").as_dict()
    init = dict(trained.recipe.model.init or {})
    return CARD.format(
        name=name,
        architecture=trained.model.config.model_type,
        parameters=parameters,
        vocabulary=len(trained.tokenizer),
        dataset=summary["dataset"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        epochs=summary["epochs"],
        loss=summary["losses"]["last"],
        init=yaml.safe_dump(init, sort_keys=False).strip(),
    )


def main(arguments: list[str]) -> int:
    """Pack the run named first into the folder named second; returns the exit code."""
    if len(arguments) != 2:
        print("usage: python -m pack_model RUN OUTPUT", file=sys.stderr)
        return 2
    try:
        report = pack(Path(arguments[0]), Path(arguments[1]))
    except PeftkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(f"{key}: {value}" for key, value in report.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
