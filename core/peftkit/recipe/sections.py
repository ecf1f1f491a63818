"""A recipe as a whole, with what it says of training; each key has its type, bounds, default and meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from peftkit.recipe import choices
from peftkit.recipe.base_sections import CalibrationSection, MethodChoice, ModelSection, QuantizationSection
from peftkit.recipe.data_section import DatasetSection
from peftkit.recipe.scoring_sections import CompareSection, EvalSection, GenerationSection
from peftkit.recipe.section import Beta, Count, Entry, PathText, Positive, Section, Seed, Text
from peftkit.recipe.size import check_memory
from peftkit.recipe.tree import Dumper

if TYPE_CHECKING:
    from peftkit.method import Method

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""What the names of `adapters` are made of."""
UNUSUAL = ("adapter", "adapters", "calibration", "compare", "plugins", "pruning")
"""Keys that a recipe is written without where they are at their defaults."""


class TrainSection(Section):
    """How to learn."""

    epochs: Positive | None = None
    """Passes over the training data; 3 where `max_steps` is not given either."""
    max_steps: Count | None = None
    """Optimizer steps; with `epochs`, whichever ends first."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)] | None = None
    """The highest learning rate; null takes the method's own."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: Annotated[float, Field(ge=0, le=1e12)] = 0.03
    """Steps in which the learning rate rises: a fraction of all steps below 1, else a number of steps."""
    optimizer: Text = "adamw"
    """What takes the steps where a method brings no optimizer of its own; `adamw-8bit` keeps its states in 8 bits and
    `adamw-offload` in the host's memory. `lion`, `adafactor`, `muon` and `apollo` keep less than AdamW, `riemannian`
    preconditions low-rank pairs. `muon` and `apollo` step vectors, and what multiplies no hidden states, as AdamW."""
    strategy: Entry = "standard"
    """How a step is made of the micro-batches: a name, or `{name: options}`. `standard` follows gradients with the
    optimizer; `mezo` follows losses alone, without a backward pass (`epsilon`, `rate_factor`)."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.999)
    """The optimizer's decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """The optimizer's epsilon, added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """The optimizer's decoupled weight decay, of matrices that multiply hidden states: vectors, gates, scales, masks,
    logits and rows of prompts and prefixes stay as they are."""
    batch_tokens: Count | None = None
    """Tokens of a micro-batch, padding included; 4096 where `batch_examples` is not given either."""
    batch_examples: Count | None = None
    """Examples of a micro-batch, instead of `batch_tokens`."""
    accumulation: Count = 1
    """Micro-batches of an optimizer step."""
    packing: bool = True
    """Compute examples without padding, each by itself; a model that cannot is told of and gets padded rows."""
    shared_prefixes: bool = True
    """Compute once what examples of a micro-batch have in common at their start; losses and gradients stay the same."""
    fused_elementwise: bool = True
    """Compute norms, gated activations and rotary positions in fewer operations, and again in the backward pass instead
    of keeping them; not with `compile`."""
    group_prompts: bool = False
    """Keep examples that have the same prompt beside each other, so that they share it in a micro-batch; other examples
    share a step then, and the losses are others."""
    max_length: Annotated[int, Field(ge=2, le=10**9)] = 512
    """Tokens of an example; longer ones are cut without emptying their target."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What the activations are computed in; `auto` takes bf16 where the hardware is quick at it (measured on a
    processor, for models from 50 million weights on), and fp16 on GPUs that have it alone; fp16 has a loss scale."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third slower."""
    compile: bool = False
    """Compile each block for training steps (`torch.compile`): a minute at the start of a run, then quicker steps in
    bf16; needs a C++ compiler on a CPU, and what cannot be compiled runs as it is."""
    memory: Annotated[str | None, BeforeValidator(check_memory)] = None
    """The memory that the run may take: `auto` for what is free, or a size such as `6GB`; micro-batches are split and
    activations computed again, as far as it takes. null gives nothing up, and ends where the memory runs out."""
    clip: Positive | None = 1.0
    """The largest norm of the gradient; null leaves it as it is."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of the target's probability that is spread over the vocabulary."""
    seed: Seed = 42
    """Draws the adapters' starting weights, the order of the data and the dropout."""
    evaluate_every: Count | None = None
    """Steps between losses on the validation split; null takes one at the end only."""
    score_every: Count | None = None
    """Steps between scores of generated answers on a fixed part of the validation split; null takes none."""
    score_inputs: Count = 64
    """Inputs that `score_every` answers, spread evenly over the validation split."""
    keep_best: Text | None = None
    """Keep the adapter of the step at which this was best: `validation_loss`, or a score, such as `BLEU-4`, with `-` in
    front where lower is better; null keeps the last. Scores of a classification come with the validation loss."""
    patience: Count | None = None
    """Early stopping: the run ends after so many measurements of `keep_best` without a better one; null goes on."""
    save_every: Count | None = None
    """Steps between checkpoints; null writes one every ten minutes. An interrupted run always writes one."""
    keep_checkpoints: Count = 2
    """Checkpoints kept; older ones are removed."""
    log: Annotated[tuple[Entry, ...], Field(strict=False)] = ()
    """Loggers that are told the figures beside `log.jsonl`, which is always written: names, or `{name: options}`."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where to compute; `auto` takes a GPU where torch finds one: CUDA or ROCm, Apple's (`mps`) or Intel's (`xpu`)."""

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, keys: Any) -> Any:
        """Write out the defaults that depend on another key."""
        if not isinstance(keys, dict):
            return keys
        settled = dict(keys)
        # Recipes of earlier versions hold it; there it stood for recorded CUDA graphs.
        if settled.pop("cuda_graphs", False):
            raise ValueError("found cuda_graphs true; allowed: leave it out, as passes are not recorded any more")
        _take_switches(settled)
        if keys.get("epochs") is None and keys.get("max_steps") is None:
            settled["epochs"] = 3.0
        if keys.get("batch_tokens") is None and keys.get("batch_examples") is None:
            settled["batch_tokens"] = 4096
        return settled

    @model_validator(mode="after")
    def _agree(self) -> TrainSection:
        if self.batch_tokens is not None and self.batch_examples is not None:
            both = f"batch_tokens {self.batch_tokens} and batch_examples {self.batch_examples}"
            raise ValueError(f"found {both}; allowed: one of them (write null for the other)")
        if self.warmup > 1 and self.warmup != int(self.warmup):
            raise ValueError(f"found warmup {self.warmup}; allowed: a fraction below 1, or a whole number of steps")
        if self.patience is not None and self.keep_best is None:
            raise ValueError(
                f"found patience {self.patience} without keep_best; allowed: name in keep_best what has to get better"
            )
        measured = "evaluate_every" if self.keep_best == "validation_loss" else "score_every"
        # A score of the objective is measured with the loss; which scores those are, is checked before the run.
        never = self.evaluate_every is None and self.score_every is None
        if self.keep_best is not None and (never or (measured == "evaluate_every" and self.evaluate_every is None)):
            raise ValueError(f"found keep_best '{self.keep_best}' without {measured}, which says when it is measured")
        return self


def _take_switches(train: dict[str, Any]) -> None:
    """Move loggers that are written as switches into `log`, as recipes of earlier versions have one."""
    for name in choices.loggers().names():
        named = train.get("log") or ()
        if isinstance(train.get(name), bool) and isinstance(named, list | tuple):
            train["log"] = [*named, name] if train.pop(name) and name not in named else [*named]


class Recipe(Section):
    """A whole experiment: what is adapted, how, on what, and where the results go."""

    include: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Parts to start from: names in `configs/` (`hardware/laptop`), or YAML files relative to this one."""
    plugins: Annotated[tuple[PathText, ...], Field(strict=False)] = ()
    """Python files of your own that are run first: what they register (methods, objectives, metrics, tasks, …) has its
    name in this recipe as those of the package have."""
    model: ModelSection
    """The language model to adapt."""
    method: Annotated[tuple[MethodChoice, ...], Field(strict=False, min_length=1)]
    """What is trained: a method's name, `{name: options}`, or a list of those."""
    adapters: Annotated[dict[Text, PathText], Field(json_schema_extra={"propertyNames": {"pattern": NAME}})] = {}
    """Trained adapters of the same base, by a name, for methods that build from them: run or adapter folders."""
    adapter: PathText | None = None
    """A trained adapter of the same base to go on from, a run or adapter folder, or another library's: its methods and
    options are these."""
    rank: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """The rank of every method that has one and does not set its own."""
    quantization: QuantizationSection = QuantizationSection()
    """How the frozen weights are stored."""
    pruning: Entry | None = None
    """Which weights are set to zero before they are stored: a name, or `{name: options}`. `wanda` goes by weights and
    what they read, `magnitude` by weights alone; null leaves all."""
    calibration: CalibrationSection = CalibrationSection()
    """What formats and pruning that look at activations are shown."""
    dataset: DatasetSection
    """What to learn from."""
    objective: Entry = "cross-entropy"
    """What is minimised: a name, or `{name: options}`. `cross-entropy` is that of next tokens; `classification` that of
    the label of a row (`labels` names the classes)."""
    train: TrainSection = TrainSection()
    """How to learn."""
    eval: EvalSection = EvalSection()
    """What `peft eval` measures."""
    generation: GenerationSection = GenerationSection()
    """How text is generated."""
    compare: CompareSection = CompareSection()
    """What `peft compare` sets side by side."""
    sweep: dict[Text, Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]] = {}
    """Keys, each with a list of values: `peft train` trains every combination of them, all together on one base."""
    output: PathText | None = None
    """The run folder; null is `runs/` and the name of the recipe's file."""

    @model_validator(mode="after")
    def _streamed(self) -> Recipe:
        data, train = self.dataset, self.train
        if not data.streaming:
            if data.buffer is not None:
                raise ValueError(f"found dataset.buffer {data.buffer} without dataset.streaming, which it is for")
            return self
        if train.max_steps is None:
            raise ValueError("found dataset.streaming without train.max_steps; allowed: say how many steps are taken")
        given = {
            "train.epochs": train.epochs,
            "train.group_prompts": train.group_prompts,
            "dataset.fraction": data.fraction if data.fraction < 1 else None,
            "dataset.limit": data.limit,
            "dataset.validation": data.validation,
        }
        whole = [key for key, value in given.items() if value]
        if whole:
            raise ValueError(f"found dataset.streaming and {whole[0]}, which takes all data; allowed: one of them")
        if data.source == "hub":
            raise ValueError("found dataset.streaming and source 'hub'; allowed: files of your own, in dataset.path")
        return self

    @classmethod
    def load(cls, source: str | PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
        """Load a recipe from a YAML file, the name of a shipped one (`e2e/lora`), or a mapping as a file would hold it.

        `overrides` are `key=value` texts, such as `rank=16`. Raises PeftkitError that tells every mistake with its
        place, and for a recipe with a sweep, which is several.
        """
        # Loading reads the sections themselves.
        from peftkit.recipe.loading import load

        return load(source if isinstance(source, Mapping) else fspath(source), overrides)

    def methods(self) -> list[Method]:
        """Build the chosen methods, in order; raises PeftkitError for an unknown name or a wrong option."""
        return [choices.methods()[choice.name].from_options(choice.options) for choice in self.method]

    @property
    def adapter_folders(self) -> dict[str, Path]:
        """The folders of `adapters`, by name."""
        return {name: Path(folder) for name, folder in self.adapters.items()}

    @property
    def start_folder(self) -> Path | None:
        """The folder of `adapter`."""
        return None if self.adapter is None else Path(self.adapter)

    def resolved(self) -> dict[str, Any]:
        """Return every key, those of `UNUSUAL` where they are used; it loads as an equal Recipe."""
        unused = {name for name in UNUSUAL if getattr(self, name) == type(self).model_fields[name].default}
        keys = self.model_dump(exclude={"include", "sweep", *unused})
        keys["method"] = [{choice.name: choice.options} for choice in self.method]
        if "compare" in keys:
            keys["compare"]["methods"] = [[{one.name: one.options} for one in entry] for entry in self.compare.methods]
        return keys

    def to_yaml(self) -> str:
        """Write what `resolved` returns."""
        return yaml.dump(self.resolved(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
