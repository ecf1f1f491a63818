"""`peft new`: write a commented recipe, from a few questions or from options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from peftkit.errors import PeftkitError
from peftkit_cli import streams
from peftkit_cli.terminal import say

QUESTIONS = {
    "model": "Model (bundled/tiny, a Hugging Face id, or a folder)",
    "method": "Method (`peft list methods`)",
    "rank": "Rank of the method, empty for one that has none",
    "dataset": "Data set (`peft list datasets`)",
    "path": "File or folder of the data, empty to fetch it",
}
TEMPLATE = """\
# {title}. Check it with `peft validate {file}`, run it with `peft train {file}`.

{model:<30}  # a Hugging Face id, a folder, or a model of `peft list models`
{method:<30}  # `peft list methods`; with options: {{NAME: {{option: value}}}}
{rank}{quantization:<30}  # how the frozen weights are held (`peft list quantization`)
{dataset:<30}  # `peft list datasets`; a part of it: {{name: …, fraction: 0.1}}

train:
  epochs: 3                       # or max_steps: 1000
  # learning_rate: 0.0002         # by default the one tuned for the method
  batch_tokens: 4096              # padded tokens in one batch; lower it where the memory runs out
  max_length: 512                 # tokens of one example; a longer one is cut, and keeps some of its target
  seed: 42

eval:
  split: test
  # limit: 200                    # score only so many inputs
"""


def new(
    model: Annotated[str | None, typer.Option(help="bundled/tiny, a Hugging Face id, or a folder.")] = None,
    method: Annotated[str | None, typer.Option(help="A method of `peft list methods`.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="The method's rank, if it has one.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set of `peft list datasets`.")] = None,
    path: Annotated[str | None, typer.Option(help="The file or folder of the data.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The recipe to write.")] = Path(
        "recipe.yaml"
    ),
) -> None:
    """Write a commented recipe from a few questions, or from options; it is checked first and overwrites nothing."""
    if output.exists():
        raise PeftkitError(f"{output} is there already and is left as it is: name another file with --output.")
    given = {"model": model, "method": method, "rank": rank and str(rank), "dataset": dataset, "path": path}
    asking = sys.stdin is not None and sys.stdin.isatty() and not any(given.values())
    answers = ask() if asking else fill({name: value for name, value in given.items() if value is not None})
    check(compose(answers, output), output)
    say(f"written: {output}. Check it with `peft validate {output}`, run it with `peft train {output}`.")


def defaults() -> dict[str, str]:
    """Return the answers that give the shipped quickstart recipe."""
    from peftkit.recipe.catalogue import find
    from peftkit.recipe.tree import read_keys

    keys = read_keys(find("quickstart"))
    return {name: short(keys.get(name, "")) for name in QUESTIONS}


def short(value: object) -> str:
    """Return the name in a recipe's value, whether it is written short or long."""
    if isinstance(value, dict):
        return str(value.get("name") or next(iter(value), ""))
    return str(value)


def ask() -> dict[str, str]:
    """Ask every question on the terminal; an empty answer takes the default."""
    known = defaults()
    with streams.reading():
        return {name: typer.prompt(text, default=known[name]).strip() for name, text in QUESTIONS.items()}


def fill(given: dict[str, str]) -> dict[str, str]:
    """Complete the given answers with the defaults; the default rank goes only with the default method."""
    known = defaults() if "method" not in given else {**defaults(), "rank": ""}
    return {**known, **given}


def compose(answers: dict[str, str], output: Path) -> str:
    """Write the recipe's text."""
    quoted = {name: scalar(answer) for name, answer in answers.items()}
    data = f"{{name: {quoted['dataset']}, path: {quoted['path']}}}" if answers["path"] else quoted["dataset"]
    ranked = f"rank: {answers['rank']}"
    rank = f"{ranked:<30}  # goes to every method that has one\n" if answers["rank"] else ""
    return TEMPLATE.format(
        title=f"{answers['method']} on {answers['dataset']}".replace("\n", " "),
        model=f"model: {quoted['model']}",
        method=f"method: {quoted['method']}",
        rank=rank,
        quantization="quantization: none",
        dataset=f"dataset: {data}",
        file=output,
    )


def scalar(text: str) -> str:
    """Write a string as YAML, in quotes where it could be read as anything else."""
    from peftkit.recipe.mistakes import Mistakes, Place
    from peftkit.recipe.tree import read_text

    node = read_text(text, Place(""), Mistakes())
    plain = node is not None and node.value == text and not set(text) & set("#,{}[]:\n")
    return text if plain else json.dumps(text, ensure_ascii=False)


def check(text: str, output: Path) -> None:
    """Validate the recipe as a file under a temporary name, which then takes the name `output`."""
    from peftkit import files
    from peftkit.recipe import load

    with files.new_file(output) as draft:
        draft.write_text(text, encoding="utf-8")
        try:
            load(draft)
        except PeftkitError as error:
            raise PeftkitError(str(error).replace(str(draft), str(output))) from None
