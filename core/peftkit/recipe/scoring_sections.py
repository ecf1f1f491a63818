"""What is measured: the sections of evaluation, of generated text, and of comparisons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from peftkit.recipe.base_sections import MethodChoice
from peftkit.recipe.section import Count, Positive, Section, Seed, Text


class EvalSection(Section):
    """What `peft eval` measures."""

    split: Text = "test"
    """The split of the data set."""
    limit: Count | None = None
    """Use at most so many inputs."""
    batch_size: Count = 32
    """Prompts that are decoded together."""
    history: Literal["gold", "predicted"] = "gold"
    """Which earlier answers stand in the prompts of a conversation (CoQA): the right ones, or the model's own."""
    official: bool = False
    """Take the tokens of METEOR, ROUGE-L, CIDEr and the captioning BLEU from Stanford's own program, which
    `peftkit[meteor]` installs."""


class GenerationSection(Section):
    """How text is generated."""

    max_new_tokens: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Tokens of an answer at most; null takes the task's own number."""
    do_sample: bool = False
    """Draw each token instead of taking the likeliest."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Divides the logits before drawing."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that hold so much of the probability."""
    top_k: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Draw from so many likeliest tokens; 0 takes all."""
    num_beams: Annotated[int, Field(ge=1, le=1000)] = 1
    """Above 1, a beam search follows so many continuations of each prompt."""
    length_penalty: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    """A beam search divides an answer's log-probability by its length to this power; above 0 favours longer ones."""
    early_stopping: Literal[False, True, "never"] = False
    """When a beam search ends: with `num_beams` answers (true), once the best continuation is worse than all of them
    (false), or once it would be at any length (`never`)."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=10**6)] = 0
    """No text holds the same n tokens twice; 0 leaves repetitions be."""
    no_repeat_ngram_prompt: bool = True
    """Whether the n tokens of the prompt count too, as in transformers; the LoRA paper's code counts the answer's."""
    seed: Seed = 0
    """Draws the tokens."""
    stop: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Texts that end an answer, besides the task's own."""

    @model_validator(mode="after")
    def _beams_or_draws(self) -> GenerationSection:
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"found do_sample true and num_beams {self.num_beams}; allowed: one of them")
        return self


class CompareSection(Section):
    """What `peft compare` sets side by side; every other key of the recipe is the same for all of them."""

    methods: Annotated[
        tuple[Annotated[tuple[MethodChoice, ...], Field(strict=False, min_length=1)], ...], Field(strict=False)
    ] = ()
    """Methods as `method` takes them, `a+b` for a combination, or `all`; a bare name of the recipe's own method has its
    options there."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Runs of each method: with `train.seed`, the seed after it, and so on."""
    fractions: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(strict=False)] = ()
    """Parts of the training split on which each method runs, as `dataset.fraction`, the smaller inside the larger; each
    seed draws its own. Empty takes the recipe's."""
    budget: Positive | None = None
    """Stored parameters of each method: its size (rank, bottleneck, length) is chosen to come nearest."""
