"""The reference page of methods, written from the registry."""

from __future__ import annotations

from typing import Any

from peftkit import adapt
from peftkit.errors import PeftkitError
from peftkit.layout import Layout
from peftkit.method import METHODS, Method, schema
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
that of the default options on Llama-2-7B. Default learning rates are those of the papers or estimates, not the result
of a search.

"""


def methods_page() -> str:
    """Return the page: a table of all methods, then what each does and its options."""
    model = load(ModelSection(init=LLAMA_2_7B, tokenizer="bundled/tiny"), device="meta", weights=False).model
    heads = ["method", "attaches to", "family", "merges", "trainable on Llama-2-7B", "paper"]
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, cls in METHODS.items():
        merges = "yes" if cls.mergeable else "no"
        rows.append(
            f"| [`{name}`](#{name}) | {cls.port} | {cls.family} | {merges} | {_count(cls, model)} | {cls.paper} |"
        )
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(_section(name, cls) for name, cls in METHODS.items())


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
        default = "the method's own" if option == "learning_rate" else f"`{_written(defaults[option])}`"
        rows.append(f"| `{option}` | {default} | {' '.join(facts.get('description', '').split())} |")
    return (
        f"## {name}\n\n{cls.summary} Default learning rate {cls.default_learning_rate:g}.\n\n" + "\n".join(rows) + "\n"
    )


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
