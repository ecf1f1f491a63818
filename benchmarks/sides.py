"""The sides that the benchmark of training sets beside each other, each from the same start on the same batches.

Every side gets the weights of one seeded Llama and the adapter that our method starts with, in fp32; the model stands
in its dtype. A side takes a step whenever its `Gate` says so. What it reports is the loss per trained token and the
norm of the gradient before clipping, of which all sides have to find the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from profiles import Work, draw
from torch import Tensor, nn

from peftkit import adapt
from peftkit.data.batches import Batches
from peftkit.data.encode import IGNORED, Encoded
from peftkit.layout import GROUPS, Layout
from peftkit.method import METHODS, Method
from peftkit.models.load import load_tokenizer, quiet
from peftkit.models.shardwise import without_weights
from peftkit.quantization.packed import PackedLinear
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.recipe import ModelSection, TrainSection
from peftkit.training.loop import Loop

RATE, SEED, DEVIATION = 1e-4, 0, 0.03
RANK, ALPHA = 8, 16.0
ALL = {"rank": RANK, "alpha": ALPHA, "targets": "linear"}


@dataclass(frozen=True)
class Size:
    """The measures of a Llama whose keys have as many heads as its queries; the head is not tied."""

    width: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 32000
    rows: int | None = None
    """The most rows of a batch; None leaves them to the profile."""

    @property
    def linears(self) -> int:
        """The weights of the linear layers of all blocks."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)


SIZES = {
    "tiny": Size(64, 2, 2, 128, 256),
    "60m": Size(512, 8, 8, 1376),
    "350m": Size(1024, 24, 16, 2816, rows=8),
    "1b": Size(2048, 22, 32, 5632),
    "7b": Size(4096, 32, 32, 11008),
}


@dataclass(frozen=True)
class Technique:
    """A method as ours is called, and whether the base is stored as NF4."""

    method: str
    options: dict[str, Any]
    packed: bool = False
    alike: bool = True
    """Whether Hugging Face peft computes the same beyond the first step, and not only in it."""
    norms: bool = True
    """Whether the norm of the gradient is taken of the same gradient there."""

    def build(self) -> Method:
        """Build our method."""
        return METHODS[self.method].from_options(self.options)


TECHNIQUES = {
    "lora": Technique("lora", ALL),
    "lora-qv": Technique("lora", {**ALL, "targets": ("q", "v")}),
    "dora": Technique("dora", ALL),
    # Hugging Face peft projects the gradient in the optimizer, when its norm has been taken.
    "lora-fa": Technique("lora-fa", {**ALL, "correction": "projected"}, norms=False),
    # Hugging Face peft moves the text by the prefix, which matters as soon as the keys are not zero.
    "prefix": Technique("prefix-tuning", {"length": 10, "projection": None}, alike=False),
    "prompt": Technique("prompt-tuning", {"length": 10}),
    "ia3": Technique("ia3", {}),
    "qlora": Technique("lora", ALL, packed=True),
}


@dataclass(frozen=True)
class Case:
    """One measurement of one side: what is trained, on what, how, and for how many steps in all."""

    side: str
    size: str
    profile: str
    method: str
    precision: str
    dtype: str
    """What the frozen weights are held in."""
    rows: int
    steps: int
    device: str = "cpu"

    @property
    def technique(self) -> Technique:
        """The method."""
        return TECHNIQUES[self.method]

    @property
    def measures(self) -> Size:
        """The model's measures."""
        return SIZES[self.size]

    def work(self) -> Work:
        """Draw the batches."""
        return draw(self.profile, self.steps, self.rows, self.measures.vocabulary)

    def small(self) -> Case:
        """The case on the tiny model, which loads all the code that it takes."""
        return replace(self, size="tiny", steps=2)


class Gate(Protocol):
    """What stands between the steps of a side."""

    def loaded(self) -> None:
        """Note that the model is there and the adapter is not yet."""

    def begin(self) -> None:
        """Wait for the first turn."""

    def passed(self, loss: float, norm: float) -> None:
        """Report a step, and wait where the turn is over."""


# The model ----------------------------------------------------------------------------------------------------------


def llama(case: Case, pack: Callable[[Tensor], nn.Module] | None) -> nn.Module:
    """Build the Llama on the device with seeded weights, the linear layers of its blocks as `pack` makes them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size, dtype = case.measures, getattr(torch, case.dtype)
    options = {"hidden_size": size.width, "num_hidden_layers": size.layers, "vocab_size": size.vocabulary}
    options |= {"num_attention_heads": size.heads, "num_key_value_heads": size.heads, "intermediate_size": size.inner}
    config = AutoConfig.for_model("llama", **options, max_position_embeddings=2048, tie_word_embeddings=False)
    with quiet(), without_weights():
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    blocks = {site.path for site in Layout(model).linears if site.role in GROUPS["linear"]} if pack else set()
    generator = torch.Generator(case.device).manual_seed(SEED)
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.ones(parameter.shape, dtype=dtype, device=case.device)
            if parameter.dim() > 1:
                value.normal_(std=DEVIATION, generator=generator)
            if pack and path in blocks:
                parent, _, key = path.rpartition(".")
                setattr(model.get_submodule(parent), key, pack(value))
            else:
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    return model.to(case.device)


def started(case: Case, model: nn.Module, *, keep_base: bool) -> adapt.Adaptation:
    """Attach our method at its seeded start; the keys of a prefix are zero, which is the same at any position."""
    adaptation = adapt.attach(model, [case.technique.build()], seed=SEED, keep_base=keep_base)
    if case.method == "prefix":
        for name, parameter in adaptation.parameters():
            if name.endswith("/K"):
                parameter.data.zero_()
    return adaptation


# Ours ---------------------------------------------------------------------------------------------------------------


class Planned(Batches):
    """Batches in the order in which they are given."""

    def plan(self, epoch: int) -> list[list[int]]:
        """Return each run of `batch_examples` rows."""
        assert self.batch_examples is not None
        rows = list(range(len(self)))
        return [rows[start : start + self.batch_examples] for start in rows[:: self.batch_examples]]


def ours(case: Case, gate: Gate) -> None:
    """Run the training loop of peftkit."""

    def pack(weight: Tensor) -> nn.Module:
        return PackedLinear.of(weight, None, QUANTIZERS["nf4"]())

    model = llama(case, pack if case.technique.packed else None)
    gate.loaded()
    loop = our_loop(case, model)
    gate.begin()
    for _ in range(case.steps):
        record = loop.run_step()
        gate.passed(record["loss"], record["grad_norm"])


def our_loop(case: Case, model: nn.Module) -> Loop:
    """Build our loop as a run has it: here alone is decided what ours is."""
    adaptation = started(case, model, keep_base=False)
    soft = list(adaptation.soft_ids)
    rows = [Encoded([*soft, *row.ids], [*[IGNORED] * len(soft), *row.labels]) for row in case.work().rows]
    section = TrainSection(
        max_steps=case.steps, batch_examples=case.rows, learning_rate=RATE, schedule="constant", warmup=0
    )
    batches = Planned(rows, batch_examples=case.rows)
    device = torch.device(case.device)
    return Loop(model, adaptation, batches, section, pad_id=0, device=device, precision=case.precision)


# Hugging Face -------------------------------------------------------------------------------------------------------


def hugging_face(case: Case, gate: Gate) -> nn.Module:
    """Build the same model and adapter in Hugging Face peft."""
    import peft

    def pack(weight: Tensor) -> nn.Module:
        import bitsandbytes as bnb

        outputs, inputs = weight.shape
        layer = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        return layer.to(case.device)

    model = llama(case, pack if case.technique.packed else None)
    gate.loaded()
    adaptation = started(case, model, keep_base=True)
    part = adaptation.parts[0]
    if case.method == "prefix":
        config, tensors = prefix(adaptation)
    else:
        config, tensors = part.method.hf_peft(part.adapters, model)
        if config["peft_type"] == "LORA":
            config["lora_alpha"] = int(ALPHA)  # ours writes the scale into B, which is zero here
    tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    adaptation.remove()
    chosen = peft.PeftConfig.from_peft_type(**{**config, "inference_mode": False})
    adapted = peft.get_peft_model(model, chosen)  # type: ignore[arg-type]
    peft.set_peft_model_state_dict(adapted, tensors)
    return adapted


def prefix(adaptation: adapt.Adaptation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write our prefix as Hugging Face peft has it: for each position the keys and values of all layers in turn."""
    adapters: list[Any] = list(adaptation.parts[0].adapters.values())
    rows = torch.cat([part for adapter in adapters for part in adapter.prefix()], dim=1)
    config = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(rows)}
    return config, {"prompt_embeddings": rows}


def optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer | None:
    """Return the optimizer that Hugging Face peft has for the method; None leaves it to the trainer."""
    from peft.optimizers import create_lorafa_optimizer

    if case.method != "lora-fa":
        return None
    return create_lorafa_optimizer(model, r=RANK, lora_alpha=int(ALPHA), lr=RATE)  # type: ignore[arg-type]


def bare(case: Case, gate: Gate) -> None:
    """Run a loop of forward, backward, clipping and step over Hugging Face peft, on batches padded to the longest."""
    model = hugging_face(case, gate).train()
    chosen = optimizer(case, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    steps = chosen or torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    device = torch.device(case.device)
    work = case.work()
    batches = Planned(work.rows, batch_examples=case.rows)
    gate.begin()
    for indices in batches.plan(0):
        batch = batches.collate(indices, 0).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, 1.0)
        steps.step()
        steps.zero_grad(set_to_none=True)
        gate.passed(loss.item(), norm.item())


def settings(case: Case, folder: str) -> dict[str, Any]:
    """Return the trainer's arguments: what is not the same for all sides is left as a user gets it."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": case.rows,
        "max_steps": case.steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": case.precision == "bf16",
        "use_cpu": case.device == "cpu",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def gated(kind: type[Any], gate: Gate) -> type[Any]:
    """Make a kind of transformers' Trainer report to the gate and wait for it between its steps."""
    from transformers import TrainerCallback

    found: dict[str, Any] = {}

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            gate.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            gate.passed(float(found["loss"]), float(found["norm"]))

    class Gated(kind):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, callbacks=[Turns()], **options)

        def training_step(self, *given: Any, **options: Any) -> Tensor:
            found["loss"] = super().training_step(*given, **options)
            return found["loss"]

        def _clip_grad_norm(self, *given: Any, **options: Any) -> Any:
            found["norm"] = super()._clip_grad_norm(*given, **options)
            return found["norm"]

    return Gated


def dataset(case: Case) -> list[dict[str, list[int]]]:
    """List the rows as trainers take them."""
    return [{"input_ids": row.ids, "labels": row.labels} for row in case.work().rows]


def trainer(case: Case, gate: Gate) -> None:
    """Run transformers' Trainer over Hugging Face peft with the collator that pads to the longest of a batch."""
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

    words = load_tokenizer(ModelSection(name="bundled/tiny"))
    model = hugging_face(case, gate)
    with tempfile.TemporaryDirectory() as folder:
        made = gated(Trainer, gate)(
            model=model,
            args=TrainingArguments(**settings(case, folder)),
            train_dataset=dataset(case),
            data_collator=DataCollatorForSeq2Seq(words),
            optimizers=(optimizer(case, model), None),
        )
        made.remove_callback(PrinterCallback)
        made.train()


SIDES: dict[str, Callable[[Case, Gate], None]] = {"ours": ours, "trainer": trainer, "bare": bare}


def available() -> list[str]:
    """List the sides that can run here."""
    return list(SIDES)
