"""The reference page of methods, written from the registry."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

from peftkit import resources
from peftkit.adaptation import check_methods, count_trained
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, TUNED_WIDTH, Method
from peftkit.models.load import load
from peftkit.options import schema
from peftkit.quantization.quantizer import formats
from peftkit.recipe import ModelSection, QuantizationSection
from peftkit.recipe import load as load_recipe
from peftkit.tasks import TASKS

LLAMA_2_7B = {
    "architecture": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
HEAD = """\
# Methods

Each is a file in `core/peftkit/methods/`, and this page is written from them. The number of trainable parameters is
that of the default options on Llama-2-7B; where a method needs a storage, on the first of the formats that have it.

"""
RATES = """\
## Learning rates

A recipe that sets no learning rate gets the method's own. It was searched on `bundled/e2e` with the bundled model,
whose hidden states are {width} wide: for every method {trials} trials of 100 steps, beginning at 1e-2 and climbing to
the lower validation loss (`python benchmarks/tuning.py`). For wider models the rate falls as {width} / width where a
method trains matrices that multiply hidden states, and stays where it trains vectors or prompts alone. A method that
needs a storage was searched on the first of the formats that have it. † marks a rate that was taken over from methods
like it, and not searched to its end. Trials on other models take 60 steps of 8
examples of E2E and begin at the default. The lowest loss of each method on a model is bold.

"""
COMPARED = """\
## Compared

The lines under the methods are from one comparison of all of them with their defaults, on the same data in the same
order: `peft compare recipes/compare/bundled-e2e.yaml`. Step time and memory are ratios to `{reference}`.
[The whole result](results/compare/comparison.md) has every score, the machine, and the loss curves. It tells how the
methods do on a model of two million weights after a few minutes, and not how they rank on large models.

## At one stored size

`peft compare compare/one-budget` gives each method the size (rank, bottleneck, length, share of the entries) at which
it stores nearest to 20,000 numbers, and trains it for the 100 steps of the search for rates;
[the table](results/budget/comparison.md) has all of them, and the deviation of those that have no such size. It is of
one seed. The 49 methods that were also run with a second one (`--seeds 2`, stopped half-way and not in the table) had
a standard deviation of BLEU-4 of 0.03 over the two, so that differences below about 0.08 are chance: with that seed
`lora` has 0.29 for 0.25, `intrinsic-said` 0.29 for 0.35. Step times are of a machine with other work.

Larger than that are these. As in the literature, full training and what stores as much (`child-tuning-f`; `galore` less
clearly) lead, pairs (`lora`, `dora`, `vera`: 0.25 to 0.28) and bottlenecks (`serial-adapter`, `pfeiffer-adapter`,
`scaled-parallel-adapter`: 0.26 to 0.29) are alike, and soft prompts in the input (0.00 to 0.14) come last. Otherwise
than there, `lora-dropout` (0.08), `periodic-lora` (0.08) and `dylora` (0.12) are far below `lora`, as 100 steps are
short for what draws, resets or trains every rank. The lead of `intrinsic-said`, `waveft` and `pafi` (0.33 to 0.35), and
what papers report of `adalora`, `moslora`, `capaboost` and `lora-plus` over `lora`, are not told from chance here.
`sensitivity-spt` at rank 1 broke down: with `alpha` at 16 its pairs are scaled by 16.
"""
RECIPE = "compare/bundled-e2e"
RESULTS = resources.folder("configs").parent / "docs" / "results"
TRIALS = RESULTS / "tuning.csv"
COMPARISON = RESULTS / "compare" / "comparison.csv"


def methods_page() -> str:
    """Return the page: a table of all methods, then what each does and its options."""
    width = f"rate at {TUNED_WIDTH} / 4096"
    heads = ["method", "attaches to", "family", "merges", "trainable on Llama-2-7B", width, "paper"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, cls in METHODS.items():
        merges = "yes" if cls.mergeable else "no"
        method = cls.from_options({})
        rates = " + ".join(
            f"{part.rate(TUNED_WIDTH):.2g} / {part.rate(4096):.2g}{'' if cls.rate_searched else ' †'}"
            for part in method.parts()
        )
        cells = (f"[`{name}`](#{name})", cls.port, cls.family, merges, _count(cls), rates, cls.paper)
        rows.append(f"| {' | '.join(cells)} |")
    lines, reference = _compared(COMPARISON)
    sections = [_section(name, cls, lines.get(name, "")) for name, cls in METHODS.items()]
    closing = [COMPARED.format(reference=reference), _rates(TRIALS)]
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join([*sections, *closing])


def _compared(path: Path) -> tuple[dict[str, str], str]:
    """Write each method's line of the comparison in words, and the method that its ratios refer to."""
    recipe = load_recipe(RECIPE)
    reference, score = recipe.method[0].name, TASKS[recipe.dataset.name.rpartition("/")[2]].headline
    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}

    def ratio(name: str, figure: str) -> str:
        return f"{float(rows[name][figure]) / float(rows[reference][figure]):.2f}"

    lines = {}
    for name, row in rows.items():
        if row["stored"]:
            lines[name] = (
                f"On {recipe.dataset.name}: {score} {float(row[str(score)]):.3f}, validation loss "
                f"{float(row['validation_loss']):.3f}, {int(float(row['stored'])):,} stored parameters, "
                f"step time {ratio(name, 'step_s')}, memory {ratio(name, 'peak_memory_bytes')}."
            )
        elif row["note"]:
            lines[name] = f"On {recipe.dataset.name}: refused, since {row['note']}"
    return lines, reference


def _rates(path: Path) -> str:
    """Write how the default rates were searched: a line of (rate: loss) for each method and model."""
    trials: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = (float(row["learning_rate"]), float(row["validation_loss"]))
            trials.setdefault((row["method"], row["model"]), []).append(found)
    lines = ["| method | model | rate: validation loss |", "|---|---|---|"]
    for (name, model), tried in sorted(trials.items()):
        best = min(loss for _, loss in tried)
        rates = (
            f"**{rate:g}: {loss:.3f}**" if loss == best else f"{rate:g}: {loss:.3f}" for rate, loss in sorted(tried)
        )
        lines.append(f"| `{name}` | {model} | {', '.join(rates)} |")
    count = max(map(len, trials.values()))
    return RATES.format(width=TUNED_WIDTH, trials=count) + "\n".join(lines) + "\n"


@cache
def _layout(needs: str | None) -> Layout:
    """Return the layout of the model whose parameters are counted, stored as methods that need a trait are shown."""
    section = None if needs is None else QuantizationSection(format=formats(needs)[0])
    base = ModelSection(init=LLAMA_2_7B, tokenizer="bundled/tiny")
    return Layout(load(base, device="meta", weights=False, quantization=section).model)


def _count(cls: type[Method]) -> str:
    method, layout = cls.from_options({}), _layout(cls.needs)
    try:
        check_methods(layout.model, [method], layout)
    except PeftkitError:
        return "refused"
    return f"{count_trained(method, layout):,}"


def _section(name: str, cls: type[Method], compared: str) -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    defaults = cls.from_options({}).options()
    described = schema(cls)["properties"]
    for option in defaults:
        facts = described[option]
        default = "its own" if option == "learning_rate" else f"`{_written(defaults[option])}`"
        rows.append(f"| `{option}` | {default} | {' '.join(facts.get('description', '').split())} |")
    needs = f" Needs weights stored as {cls.needs}: {', '.join(formats(cls.needs))}." if cls.needs else ""
    text = f"{cls.summary}{needs}\n\n{compared}".strip()
    return f"## {name}\n\n{text}\n\n" + "\n".join(rows) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
