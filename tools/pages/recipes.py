"""The reference page of recipes, written from the models so that it cannot drift from them."""

from __future__ import annotations

from typing import Any

from peftkit.loggers import LOGGERS
from peftkit.pruning import PRUNERS
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe.compose import SECTIONS
from peftkit.recipe.describe import allowed
from peftkit.recipe.section import Section
from peftkit.recipe.sections import CalibrationSection, MethodChoice, QuantizationSection, Recipe, TrainSection

INTRODUCTION = """\
# Recipes

A recipe is a YAML file that says what is adapted, how, on what, and where the results go. These lines are a whole one:

```yaml
model: bundled/tiny
method: lora
rank: 8
quantization: none
dataset: e2e
```

Every key below may be written; every mistake is told with its file and line. `peft validate RECIPE` checks a recipe and
says what it would do; the resolved recipe, with every key written out, is kept as `recipe.yaml` in the run folder.

**Short forms.** `model: NAME`, `dataset: NAME` and `quantization: FORMAT` stand for a section with that one key. A
method is a name, `{name: {option: value}}`, or a list of those for a combination; `peft list methods` names them all.

**Overrides.** `peft train recipe.yaml train.epochs=1 dataset.path=data method.lora.alpha=32 train.clip=null`: each is
the same edit in the file. The key is dotted (a number counts the items of a list, from 0), what follows the first `=`
is YAML, and it replaces what stands at that key.

**Parts.** `include: [models/llama-2-7b, hardware/gpu-24gb]` starts from the parts in `configs/`, or from your own YAML
files (`include: [../shared/base.yaml]`, relative to the recipe). They are merged in order, then the recipe's own keys,
then the overrides. Mappings are merged key by key, anything else is replaced; a section that names another model, data
set, format or other methods replaces the whole section below it.

**Sweeps.** `sweep: {rank: [2, 4, 8], train.learning_rate: [1e-4, 3e-4]}` makes a recipe of each combination; a value
is the same as an override of its key. `peft train` trains them together over one frozen base, as it does the recipes
of `peft train a.yaml b.yaml --together`: the tokens of all runs go through the model in one batch, each adapter on its
own. Each run has its own folder, those of a sweep named by their values, and the losses of a run by itself (draws of
dropout differ); a run that diverges leaves the others running, and each can be resumed with the others or by itself.
Runs of one base share `model`, `quantization`, `train.precision` and `train.device`, need `train.packing`, and take
methods that leave the model's own weights as they are. In memory a micro-batch is as large as those of all runs.

**Paths** are kept as written: relative ones start at the folder in which the command runs; `~` is your home folder.

**Numbers** may be written `1e-4`. Keys that are left out, or sections that are left empty, take the defaults.
"""


FORMATS = """\
A format's options, and modules with a format of their own, may stand beside `format` (or `default`, the same):
`quantization: {default: nf4, block_size: 128, head: none, "layers.0.*": int8}`. Modules are named as a method's
targets are; a pattern also names stacks of experts, whose weights are packed one by one, and `experts: none` leaves
all of them. Embeddings, norms and routers stay as they are, and so does the head unless it is named. Bits are those of
a layer of 4096 by 4096, scales included.

`quantization: {budget: 2.75}` chooses the format of each linear layer and stack of the blocks, among {budgeted} in
several block sizes: all together take at most that many bits a weight, and the sum of |W - Q|^2 is the least there is.
The choice is written into the run's `recipe.yaml` beside the budget, and is not made again.

{calibrated} look at what each map reads in {samples} examples of the training split, drawn by a seed (`calibration`),
layer by layer behind the layers that are packed already. The packed weights are kept in the run's folder, under
`base/`: `--resume`, `peft eval` and `peft merge` take them from there, without the data. `calibration: {weights:
runs/first}` takes those of another run, so that adapters of several data sets fit one base; an adapter on weights that
other examples decided is refused. Experts in stacks and what is packed anew later (`peft merge --requantize`, the
starts `loftq` and `lq-lora`) are rounded to nearest. `peft quantize --data NAME` packs a folder of them once and for
all.

"""
PRUNING = """\
`pruning: {wanda: {sparsity: 0.5}}`, or `{pattern: "2:4"}` in quotes, sets weights of the linear layers of the blocks to
zero before they are stored, and any method trains on what is left. Which weights those are is kept in the run's folder,
under `base/`. Formats keep zeros as they are, and one that has none is refused. `peft merge` tells how many zeros the
adapter has filled, and `--keep-zeros` sets them to zero again and tells how far the logits are then from those of the
trained model; either stands in the merged model's `config.json`.

"""
LOGS = """\
`log: [tensorboard, {wandb: {project: mine}}]` tells the figures of every step, validation losses, scores and the
summary to loggers, beside `log.jsonl`, which is always written. Each needs its package (`pip install
"peftkit[wandb]"`); a run is refused before anything is read where one is missing. A logger that fails later is told of
once and left off, and the run goes on. A resumed run goes on in the same run of each logger: `loggers.json` in the run
folder keeps what finds it.

"""
LARGE = (4096, 4096)


def recipes_page() -> str:
    """Return the page: the forms of a recipe, then every key with its default, what it allows, and what it means."""
    parts = [INTRODUCTION, "## The top\n", _table(Recipe, "")]
    for name, section in SECTIONS.items():
        parts += [f"## {name}\n", f"{section.__doc__}\n", _table(section, name)]
        parts += [_formats()] if section is QuantizationSection else []
        parts += [_loggers()] if section is TrainSection else []
        parts += [_prunings()] if section is CalibrationSection else []
    return "\n".join(parts)


def _table(section: type[Section], name: str) -> str:
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        path = f"{name}.{key}" if name else key
        default = "required" if field.is_required() else f"`{_written(field.get_default(call_default_factory=True))}`"
        rows.append(f"| `{path}` | {default} | {_allowed(section, key)} | {_line(field.description)} |")
    return "\n".join(rows) + "\n"


def _formats() -> str:
    """Return how formats are chosen, and the table of them."""
    rows = ["| format | bits a weight | options | what it is |", "|---|---|---|---|"]
    for name, cls in QUANTIZERS.items():
        options = ", ".join(f"`{key}: {_written(value)}`" for key, value in cls().options().items())
        rows.append(f"| `{name}` | {cls().bits_per_weight(LARGE):.3f} | {options} | {cls.summary} ({cls.paper}) |")
    budgeted = ", ".join(f"`{name}`" for name, cls in QUANTIZERS.items() if cls.budgeted)
    calibrated = " and ".join(f"`{name}`" for name, cls in QUANTIZERS.items() if cls.calibrated)
    text = FORMATS.replace("{budgeted}", budgeted).replace("{calibrated}", calibrated)
    return text.replace("{samples}", str(CalibrationSection().samples)) + "\n".join(rows) + "\n"


def _prunings() -> str:
    """Return what pruning does, and the table of its ways."""
    rows = ["| pruning | options | what goes |", "|---|---|---|"]
    for name, cls in PRUNERS.items():
        options = ", ".join(f"`{key}: {_written(value)}`" for key, value in cls().options().items())
        rows.append(f"| `{name}` | {options} | {cls.summary} ({cls.paper}) |")
    return PRUNING + "\n".join(rows) + "\n"


def _loggers() -> str:
    """Return what loggers are, and the table of them."""
    rows = ["| logger | options | what it is | extra |", "|---|---|---|---|"]
    for name, cls in LOGGERS.items():
        options = ", ".join(f"`{key}: {_written(value)}`" for key, value in cls().options().items())
        rows.append(f"| `{name}` | {options or '–'} | {cls.summary} | `peftkit[{cls.extra}]` |")
    return LOGS + "\n".join(rows) + "\n"


def _line(text: str | None) -> str:
    """Bring a docstring to one line, as the cell of a table has to be."""
    return " ".join((text or "").split())


def _allowed(section: type[Section], key: str) -> str:
    if section is Recipe and key in SECTIONS:
        short = SECTIONS[key].short
        return f"a {short}, or [keys](#{key})" if short else f"[keys](#{key})"
    if section is Recipe and key == "method":
        return f"a {next(iter(MethodChoice.model_fields))}, `{{name: options}}`, or a list of those"
    return allowed(section, key).replace("|", "\\|")


def _written(value: Any) -> str:
    """Write a default as YAML does."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple() | list():
            return f"[{', '.join(_written(item) for item in value)}]"
        case Section():
            short = value.short
            return _written(getattr(value, short)) if short else "{}"
    return str(value)
