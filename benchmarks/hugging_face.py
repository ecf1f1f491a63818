"""The usual sides of the benchmark of training: Hugging Face peft under several loops."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from cases import ALPHA, RANK, RATE, Case, Gate, Planned, llama, started
from torch import Tensor, nn

from peftkit.adaptation import Adaptation
from peftkit.errors import PeftkitError
from peftkit.export.hf_peft.converter import convert
from peftkit.models.tokenizer import load_tokenizer
from peftkit.recipe import ModelSection


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
    config, tensors = start(case, model)
    chosen = peft.PeftConfig.from_peft_type(**{**config, "inference_mode": False})
    adapted = peft.get_peft_model(model, chosen)  # type: ignore[arg-type]
    peft.set_peft_model_state_dict(adapted, tensors)
    return adapted


def start(case: Case, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the start of our method as Hugging Face peft's configuration and tensors; the model stays as it was."""
    adaptation = started(case, model, keep_base=True)
    part = adaptation.parts[0]
    if case.method == "prefix":
        config, tensors = prefix(adaptation)
    else:
        config, tensors = convert(part.method, part.adapters, model)
        if config["peft_type"] == "LORA":
            config["lora_alpha"] = int(ALPHA)  # ours writes the scale into B, which is zero here
    tensors = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    adaptation.remove()
    return config, tensors


def prefix(adaptation: Adaptation) -> tuple[dict[str, Any], dict[str, Tensor]]:
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

    step: dict[str, Any] = {}

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            gate.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            gate.passed(float(step["loss"]), float(step["norm"]))

    class Gated(kind):
        def __init__(self, *given: Any, **options: Any):
            super().__init__(*given, callbacks=[Turns()], **options)

        def training_step(self, *given: Any, **options: Any) -> Tensor:
            step["loss"] = super().training_step(*given, **options)
            return step["loss"]

        def _clip_grad_norm(self, *given: Any, **options: Any) -> Any:
            step["norm"] = super()._clip_grad_norm(*given, **options)
            return step["norm"]

    return Gated


def dataset(case: Case) -> list[dict[str, list[int]]]:
    """List the rows as trainers take them."""
    return [{"input_ids": row.ids, "labels": row.labels} for row in case.work().rows]


def trainer(case: Case, gate: Gate) -> None:
    """Run transformers' Trainer over Hugging Face peft with the collator that pads to the longest of a batch."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

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
        run(made)


def trl(case: Case, gate: Gate) -> None:
    """Run TRL's SFTTrainer on rows that are encoded already, with its own loss and collator."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    words = load_tokenizer(ModelSection(name="bundled/tiny"))
    model = hugging_face(case, gate)
    with tempfile.TemporaryDirectory() as folder:
        # Its default recomputes activations, which no other side does.
        args = SFTConfig(**settings(case, folder), max_length=None, gradient_checkpointing=False)
        rows = Dataset.from_list(dataset(case))
        run(gated(SFTTrainer, gate)(model=model, args=args, train_dataset=rows, processing_class=words))


def unsloth(case: Case, gate: Gate) -> None:
    """Run transformers' Trainer over a model that Unsloth has loaded and adapted; for LoRA on a GPU alone."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # isort: skip
    from peft import set_peft_model_state_dict
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    if case.technique.method != "lora":
        raise PeftkitError(f"Unsloth trains LoRA, and not {case.method}: leave out the side unsloth.")
    words = load_tokenizer(ModelSection(name="bundled/tiny"))
    with tempfile.TemporaryDirectory() as folder:
        source: Any = llama(case, None)
        tensors = {key: tensor.cpu() for key, tensor in start(case, source)[1].items()}
        source.save_pretrained(f"{folder}/model")
        words.save_pretrained(f"{folder}/model")
        del source
        model, _ = FastLanguageModel.from_pretrained(
            f"{folder}/model", max_seq_length=2048, dtype=getattr(torch, case.dtype), load_in_4bit=case.technique.packed
        )
        gate.loaded()
        targets = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in tensors})
        model = FastLanguageModel.get_peft_model(
            model,
            r=RANK,
            lora_alpha=int(ALPHA),
            lora_dropout=0,
            target_modules=targets,
            use_gradient_checkpointing=False,
        )
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, tensors)
        args = TrainingArguments(**settings(case, folder))
        collator = DataCollatorForSeq2Seq(words)
        run(gated(Trainer, gate)(model=model, args=args, train_dataset=dataset(case), data_collator=collator))


def run(made: Any) -> None:
    """Train without what a trainer prints."""
    from transformers import PrinterCallback

    made.remove_callback(PrinterCallback)
    made.train()
