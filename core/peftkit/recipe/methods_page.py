"""The reference page of methods, written from the registry."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from peftkit import adapt, resources
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, TUNED_WIDTH, Method, schema
from peftkit.models.load import load
from peftkit.recipe.sections import ModelSection

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
that of the default options on Llama-2-7B.

"""
RATES = """\
## Learning rates

A recipe that sets no learning rate gets the method's own. It was searched on `bundled/e2e` with the bundled model,
whose hidden states are {width} wide: for every method {trials} trials of 100 steps, beginning at 1e-2 and climbing to
the lower validation loss (`python benchmarks/tuning.py`). For wider models the rate falls as {width} / width where a
method trains matrices that multiply hidden states, and stays where it trains vectors or prompts alone. The lowest loss
of each method is bold.

"""
TRIALS = resources.folder("configs").parent / "docs" / "results" / "tuning.csv"


def methods_page() -> str:
    """Return the page: a table of all methods, then what each does and its options."""
    model = load(ModelSection(init=LLAMA_2_7B, tokenizer="bundled/tiny"), device="meta", weights=False).model
    width = f"rate at {TUNED_WIDTH} / 4096"
    heads = ["method", "attaches to", "family", "merges", "trainable on Llama-2-7B", width, "paper"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, cls in METHODS.items():
        merges = "yes" if cls.mergeable else "no"
        method = cls.from_options({})
        rates = f"{method.rate(TUNED_WIDTH):.2g} / {method.rate(4096):.2g}"
        cells = (f"[`{name}`](#{name})", cls.port, cls.family, merges, _count(cls, model), rates, cls.paper)
        rows.append(f"| {' | '.join(cells)} |")
    sections = [_section(name, cls) for name, cls in METHODS.items()]
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join([*sections, _rates(TRIALS)])


def _rates(path: Path) -> str:
    """Tell how the default rates were found: a line of (rate: loss) for each method."""
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["method"], []).append((float(row["learning_rate"]), float(row["validation_loss"])))
    lines = ["| method | rate: validation loss |", "|---|---|"]
    for name in sorted(found):
        best = min(loss for _, loss in found[name])
        told = (
            f"**{rate:g}: {loss:.3f}**" if loss == best else f"{rate:g}: {loss:.3f}"
            for rate, loss in sorted(found[name])
        )
        lines.append(f"| `{name}` | {', '.join(told)} |")
    trials = max(map(len, found.values()))
    return RATES.format(width=TUNED_WIDTH, trials=trials) + "\n".join(lines) + "\n"


def _count(cls: type[Method], model: Any) -> str:
    method = cls.from_options({})
    try:
        adapt.check(model, [method])
    except PeftkitError:
        return "refused"
    return f"{method.count(Layout(model)):,}"


def _section(name: str, cls: type[Method]) -> str:
    rows = ["| option | default | meaning |", "|---|---|---|"]
    defaults = cls.from_options({}).options()
    for option, facts in schema(cls)["properties"].items():
        default = "its own" if option == "learning_rate" else f"`{_written(defaults[option])}`"
        rows.append(f"| `{option}` | {default} | {' '.join(facts.get('description', '').split())} |")
    return f"## {name}\n\n{cls.summary}\n\n" + "\n".join(rows) + "\n"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
