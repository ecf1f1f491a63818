"""Folders of other libraries as runs: `peft import`, and every command that takes a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import SINGLE, Noise, bottleneck, write_delta, write_hub
from model_folders import byte_tokenizer, write_model
from safetensors.torch import load_file
from test_adapterhub_folders import NAMES
from transformers import AutoConfig, AutoModelForCausalLM

from peftkit.adaptation import describe_adapter
from peftkit.api import evaluate, load
from peftkit.errors import PeftkitError
from peftkit.interchange import READERS, as_run, import_folder, is_foreign
from peftkit.models.quiet import quiet
from peftkit.models.tiny import MODERN, tiny
from peftkit.recipe import Recipe

hub = pytest.importorskip("peft", reason="Hugging Face peft is not installed")
IDS = torch.arange(3, 40)[None]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGURATIONS = {
    "experts": lambda: hub.LoraConfig(r=4, lora_alpha=9, target_modules=ATTENTION, target_parameters=EXPERTS),
    "lora": lambda: hub.LoraConfig(r=4, lora_alpha=9, target_modules="all-linear", task_type="CAUSAL_LM"),
    "ia3": lambda: hub.IA3Config(task_type="CAUSAL_LM"),
    "prompt": lambda: hub.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "prefix": lambda: hub.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


OTHERS = {"phi3": MODERN, "mixtral": MODERN | {"num_local_experts": 4, "num_experts_per_tok": 2}}
"""Families beside those that the package builds tiny models of: the keys of their configurations."""


def write_family(folder: Path, architecture: str) -> Path:
    """Write a tiny random model of any of the families, and its tokenizer."""
    if architecture not in OTHERS:
        return write_model(folder, architecture)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **OTHERS[architecture]))
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folder


def write_hub_peft(folder: Path, config: Any, architecture: str = "llama", base: Path | None = None) -> Any:
    """Have Hugging Face peft write an adapter of random values on a model on disk; returns its model."""
    base = base or write_model(folder.with_name("base"), architecture)
    generator = torch.Generator().manual_seed(3)
    with quiet(), torch.no_grad():
        model = hub.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                scale = 0.5 if "prompt" in name else 0.05
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("kind", [kind for kind in CONFIGURATIONS if kind != "experts"])
def test_an_imported_run_answers_as_the_library_does(kind: str, tmp_path: Path) -> None:
    """Greedy answers of a batch of one are those of transformers' generate with that adapter."""
    theirs = write_hub_peft(tmp_path / "adapter", CONFIGURATIONS[kind]())
    report = import_folder(tmp_path / "adapter", tmp_path / "run")
    assert report["base"] == str(tmp_path / "base")
    marks = describe_adapter(tmp_path / "run" / "adapter")["imported"]
    assert marks["library"] == "Hugging Face peft"
    assert set(marks["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    model: Any = load(tmp_path / "run")[0]
    base: Any = tiny("llama")
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with quiet(), torch.no_grad():
        expected = theirs.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **settings)
        ours = model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
        bare = base.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
    assert ours[0, -12:].tolist() == expected[0, -12:].tolist()
    assert bare[0, -12:].tolist() != expected[0, -12:].tolist()


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("phi3", "gemma", "mixtral"))],
)
def test_merging_a_folder_is_merge_and_unload(architecture: str, peft: Any, tmp_path: Path) -> None:
    base = write_family(tmp_path / "base", architecture)
    # Their `all-linear` adapts the router of a mixture too, which is no linear map here and refused.
    kind = "experts" if architecture == "mixtral" else "lora"
    theirs = write_hub_peft(tmp_path / "adapter", CONFIGURATIONS[kind](), base=base)
    done = peft("merge", tmp_path / "adapter", "--output", tmp_path / "merged")
    assert done.code == 0, done.err
    with quiet(), torch.no_grad():
        expected = theirs.merge_and_unload()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    wanted, found = expected.state_dict(), merged.state_dict()
    assert wanted.keys() == found.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=1e-6)


def test_commands_take_a_folder_as_a_run(peft: Any, tmp_path: Path) -> None:
    folder, base = tmp_path / "adapter", write_model(tmp_path / "base")
    stem = "model.layers.{}.output_adapters.adapters.task"
    noise = Noise()
    tensors = {f"{stem.format(n)}.{NAMES[k]}": v for n in range(2) for k, v in bottleneck(noise).items()}
    write_hub(folder, SINGLE, tensors)
    assert is_foreign(folder)
    done = peft("eval", folder, "dataset=bundled/e2e", "--limit", 2)
    assert (done.code, "name it with model=NAME" in done.err) == (2, True)
    few = ("generation.max_new_tokens=3", "dataset=bundled/e2e")
    done = peft("eval", folder, f"model={base}", *few, "--limit", 2, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["adapter"][0]["name"] == "pfeiffer-adapter"
    # The base is known by now, and what was made is not made again.
    made = (folder / "peftkit" / "adapter" / "adapter.safetensors").stat().st_mtime_ns
    assert peft("generate", folder, "ab", few[0]).code == 0
    assert peft("report", folder, "--output", tmp_path / "report").code == 0
    assert peft("combine", folder, folder, "--how", "average", "--output", tmp_path / "both").code == 0
    assert (folder / "peftkit" / "adapter" / "adapter.safetensors").stat().st_mtime_ns == made
    done = peft("export", folder, "--format", "hf-peft", "--output", tmp_path / "exported")
    assert (done.code, "no counterpart in Hugging Face peft" in done.err) == (2, True)
    done = peft("merge", folder, "--output", tmp_path / "merged", few[0])
    assert (done.code, "of a run as it is nothing is set" in done.err) == (2, True)


def test_a_changed_file_or_another_base_is_read_again(tmp_path: Path) -> None:
    base, other = write_model(tmp_path / "base"), write_model(tmp_path / "other")
    folder = write_delta(tmp_path / "a", "soft_prompt", {"soft_prompt_layer.soft_embeds": torch.ones(2, 32)})
    run, left = as_run(folder, [f"model={base}", "eval.batch_size=2", "dataset=bundled/e2e"])
    assert (run, left) == (folder / "peftkit", ["eval.batch_size=2", "dataset=bundled/e2e"])
    assert Recipe.load(run / "recipe.yaml").method[0].options["length"] == 2
    write_delta(folder, "soft_prompt", {"soft_prompt_layer.soft_embeds": torch.ones(3, 32)})
    as_run(folder, [f"model={base}"])
    assert Recipe.load(run / "recipe.yaml").method[0].options["length"] == 3
    as_run(folder, [f"model={other}"])
    assert Recipe.load(run / "recipe.yaml").model.name == str(other)
    assert as_run(run, ["x=1"]) == (run, ["x=1"])


def test_functions_take_a_folder_as_a_run(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    folder = write_delta(tmp_path / "a", "soft_prompt", {"soft_prompt_layer.soft_embeds": torch.ones(2, 32)})
    model, _ = load(folder, overrides=[f"model={base}"])
    assert model is not None
    few = ["dataset=bundled/e2e", "generation.max_new_tokens=2"]
    assert evaluate(folder, overrides=few, limit=1)["adapter"][0]["name"] == "prompt-tuning"


def test_mistakes_name_the_way_out(peft: Any, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    done = peft("import", tmp_path / "nothing", "--output", tmp_path / "run")
    assert (done.code, "does not exist; read are folders of" in done.err) == (2, True)
    (tmp_path / "empty").mkdir()
    done = peft("import", tmp_path / "empty", "--output", tmp_path / "run")
    assert (done.code, "holds no adapter of a library that is known" in done.err) == (2, True)
    folder = write_delta(tmp_path / "a", "soft_prompt", {"soft_prompt_layer.soft_embeds": torch.ones(2, 16)})
    done = peft("import", folder, "--output", tmp_path / "run", f"model={base}")
    assert (done.code, "soft_embeds has the shape [2, 16], and [any, 32] is wanted" in done.err) == (2, True)
    done = peft("import", folder, "--output", tmp_path / "run", f"model={base}", "train.epochs=2")
    assert (done.code, "the adapter is there already" in done.err) == (2, True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_text("{}")
    done = peft("train", "quickstart", f"adapter={tmp_path / 'b'}", "--dry-run")
    assert (done.code, "becomes a run by `peft import" in done.err) == (2, True)


def test_training_goes_on_from_an_imported_run(peft: Any, tmp_path: Path) -> None:
    write_hub_peft(tmp_path / "adapter", CONFIGURATIONS["lora"]())
    assert peft("import", tmp_path / "adapter", "--output", tmp_path / "run").code == 0
    recipe = tmp_path / "next.yaml"
    recipe.write_text(
        f"{{model: {tmp_path / 'base'}, adapter: {tmp_path / 'run'}, dataset: bundled/e2e, "
        "train: {max_steps: 1, max_length: 64, device: cpu}}"
    )
    done = peft("train", recipe, "--output", tmp_path / "next")
    assert done.code == 0, done.err
    assert describe_adapter(tmp_path / "next" / "adapter")["went_on_from"]["folder"] == str(tmp_path / "run")


def test_a_soft_prompt_is_refused_where_a_token_opens_every_text(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    tokenizer = byte_tokenizer()
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(base)
    folder = write_delta(tmp_path / "a", "soft_prompt", {"soft_prompt_layer.soft_embeds": torch.ones(2, 32)})
    with pytest.raises(PeftkitError, match="begins texts with '<s>'"):
        import_folder(folder, tmp_path / "run", [f"model={base}"])


def test_every_library_is_told_from_the_others(tmp_path: Path) -> None:
    write_hub_peft(tmp_path / "hf-peft", CONFIGURATIONS["lora"]())
    write_hub(tmp_path / "adapterhub", SINGLE, {"x": torch.ones(1)})
    write_delta(tmp_path / "opendelta", "lora", {"x": torch.ones(1)})
    for name in READERS.names():
        claimed = [other for other, reader in READERS.items() if reader.claims(tmp_path / name)]
        assert claimed == [name]
    assert not is_foreign(tmp_path / "base")


@pytest.mark.parametrize("given", ["adapter: {0}", "adapter: {0}, quantization: int8"])
def test_training_goes_on_from_a_folder_itself(given: str, peft: Any, tmp_path: Path) -> None:
    """What is trained begins with the folder's tensors, on the recipe's base and not on the one that they name."""
    write_hub_peft(tmp_path / "adapter", CONFIGURATIONS["lora"]())
    base = (tmp_path / "base").rename(tmp_path / "moved")
    recipe = tmp_path / "next.yaml"
    recipe.write_text(
        f"{{model: {base}, {given.format(tmp_path / 'adapter')}, dataset: bundled/e2e, "
        "train: {max_steps: 1, max_length: 64, device: cpu, learning_rate: 1.0e-12}}"
    )
    assert peft("validate", recipe).code == 0
    done = peft("train", recipe, "--output", tmp_path / "next")
    assert done.code == 0, done.err
    assert Recipe.load(tmp_path / "adapter" / "peftkit" / "recipe.yaml").model.name == str(base)
    theirs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ours = load_file(tmp_path / "next" / "adapter" / "adapter.safetensors")
    assert {tuple(v.shape) for v in ours.values()} == {tuple(v.shape) for v in theirs.values()}
    for tensor in theirs.values():
        assert any(tensor.shape == v.shape and torch.allclose(tensor, v, atol=1e-6) for v in ours.values())


def test_a_start_that_does_not_fit_is_told_at_its_line(peft: Any, tmp_path: Path) -> None:
    write_hub_peft(tmp_path / "adapter", CONFIGURATIONS["lora"]())
    write_model(tmp_path / "gpt", "gpt2")
    recipe = tmp_path / "next.yaml"
    recipe.write_text(f"model: {tmp_path / 'gpt'}\nadapter: {tmp_path / 'adapter'}\ndataset: bundled/e2e\n")
    done = peft("validate", recipe)
    assert (done.code, f"{recipe}:2: adapter: " in done.err) == (2, True), done.err
