"""The README is true: its commands run, its recipes load, its files exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Forking

from peftkit.comparison import runs
from peftkit.recipe import load
from peftkit_cli import main as program

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SMALL = {
    "train": ["train.max_steps=2", "train.batch_examples=4", "train.batch_tokens=null", "dataset.limit=16"],
    "compare": ["train.max_steps=2", "dataset.limit=16", "eval.limit=2", "generation.max_new_tokens=4"],
    "eval": ["--limit", "2"],
    "profile": ["train.max_steps=1", "dataset.limit=32"],
}
"""What makes a command of the README short enough for a test."""


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


COMMANDS = [line for block in blocks(README, "sh") for line in block.splitlines() if line.strip()]


@pytest.mark.usefixtures("few_validation_examples")
def test_commands_of_the_readme_run_in_their_order(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "subprocess", Forking(server))
    run = [shlex.split(line)[1:] for line in COMMANDS if line.startswith("peft ")]
    assert len(run) >= 8
    for arguments in run:
        code = program.main([*arguments, *SMALL.get(arguments[0], [])])
        assert code == 0, (arguments, capsys.readouterr().err)
    left = {path.relative_to(tmp_path / "runs/first").as_posix() for path in (tmp_path / "runs/first").rglob("*")}
    (tree,) = [block for block in blocks(README, "") if "├──" in block]
    named = [name.rstrip("/") for name in re.findall(r"[├└]── (\S+)", tree) if "step-" not in name]
    assert len(named) == 10
    for name in named:
        assert any(path.split("/")[-1] == name for path in left), f"{name} is not in the run folder"


def test_the_python_of_the_readme_runs(tmp_path):
    (door,) = [block for block in blocks(README, "python") if "from peftkit import" in block]
    assert len(door.splitlines()) <= 24, "a reader takes it in at a glance"
    (tmp_path / "door.py").write_text(door.replace('"max_steps": 20', '"max_steps": 2'), encoding="utf-8")
    paths = os.pathsep.join((str(ROOT / "core"), str(ROOT / "cli")))
    done = subprocess.run(
        [sys.executable, "door.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["1", "2"]
    assert float(lines[2].split()[1]) >= 0
    assert lines[3].startswith("name[The Mill], eatType[pub], food[Italian]")
    assert (tmp_path / "runs/python/summary.json").is_file()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_targets_of_the_readme_exist():
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert targets == ["quickstart", "test"]
    for target in [*targets, "real", "test-all", "test-processors", "parity", "setup", "tiny", "lint", "clean"]:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks(README, "yaml"), ids=lambda text: text.splitlines()[0])
def test_recipes_of_the_readme_load(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "recipe.yaml").method


def test_the_table_names_every_command():
    named = set(re.findall(r"^\| `peft ([\w-]+)", README, flags=re.MULTILINE))
    assert named == set(program.COMMANDS)


def test_links_of_the_readme_lead_to_files():
    links = [link for pair in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", README) for link in pair if link]
    assert len(links) >= 8
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), f"{link} does not exist"


EXAMPLES = [
    "output_scale",
    "block_gate",
    "temperature",
    "ramp",
    "orthogonal",
    "coarse2",
    "capitals",
    "length",
    "sgd",
    "npz",
    "focal",
    "sign",
    "lines",
    "encoder",
]
"""The files of CONTRIBUTING in their order."""
EXERCISE = """
import sys
from dataclasses import dataclass
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import output_scale, block_gate, temperature, ramp, orthogonal, coarse2, capitals, length, sgd, npz
import focal, sign, lines, encoder
import torch
from safetensors.torch import save_file
from peftkit.adaptation import TENSORS, attach
from peftkit.export import export
from peftkit.method import METHODS, Method
from peftkit.metrics import METRICS
from peftkit.models.tiny import tiny
from peftkit.optim.build import Optimizers
from peftkit.quantization.quantizer import QUANTIZERS
from peftkit.tasks import TASKS

@dataclass(frozen=True, kw_only=True)
class Warm(Method, name="warm"):
    port = "attention"
    mergeable = False
    def sites(self, layout):
        return layout.attention()
    def build(self, site):
        return temperature.Temperature(site)
    def count(self, layout):
        return len(self.sites(layout))

@dataclass(frozen=True, kw_only=True)
class Soft(Method, name="soft"):
    port = "embedding"
    mergeable = False
    def sites(self, layout):
        return [layout.embedding()]
    def build(self, site):
        return ramp.Ramp(site)
    def count(self, layout):
        return layout.embedding().outputs

ids = torch.arange(3, 12)[None]
counts = {"output_scale": 2 * (32 + 16), "block_gate": 2 * 32, "warm": 2, "soft": 32}
for name, count in counts.items():
    model = tiny("llama")
    before = model(input_ids=ids).logits
    adaptation = attach(model, [METHODS[name].from_options({})])
    assert torch.equal(model(input_ids=ids).logits, before), name
    assert adaptation.trainable == count, name
    soft = torch.tensor([[model.config.vocab_size, 3]]) if name == "soft" else ids
    start = model(input_ids=soft).logits
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.fill_(0.5)
    adapted = model(input_ids=soft).logits
    assert (adapted - start).abs().max() > 1e-3, name
    if METHODS[name].mergeable:
        adaptation.merge_()
        assert torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-5)

lora = attach(tiny("llama"), [METHODS["lora"].from_options({"init": "orthogonal", "rank": 4})])
A = next(tensor for key, tensor in lora.parameters() if key.endswith("/A"))
assert torch.allclose(A @ A.T, torch.eye(4), atol=1e-5)
weight = torch.tensor([[0.9, 0.4, -0.2, -1.0] * 16])
quantizer = QUANTIZERS["coarse2"].from_options({"double_quant": False})
parts = quantizer.quantize(weight)
assert torch.allclose(quantizer.decode(parts, (1, 64))[0, :4], torch.tensor([1.0, 0.5, 0.0, -1.0]))

data = Path(sys.argv[1]) / "test.csv"
data.write_text("country,capital\\nPeru,Lima\\n", encoding="utf-8")
example, = TASKS["capitals"].read(data.parent, "test")
assert example.references == ("Lima",)
assert METRICS["length"].score(["a b c"], [["a b", "a b c d e f"]]) == {"length": 1.5}

weight = torch.nn.Parameter(torch.ones(2))
weight.grad = torch.ones(2)
group = {"params": [weight], "keys": ["w"], "lr": 0.5, "weight_decay": 0.0, "optimizer": "sgd"}
Optimizers([group]).step()
assert torch.equal(weight, torch.full((2,), 0.5))

run = Path(sys.argv[1]) / "run"
(run / "adapter").mkdir(parents=True)
save_file({"q/A": torch.ones(2, 3)}, run / "adapter" / TENSORS)
assert export(run, run.parent / "npz", "npz")["tensors"] == 1
assert (run.parent / "npz" / "adapter.npz").is_file()
from peftkit.recipe import load as read
from peftkit.models.load import load
from peftkit.training import train
from peftkit.families import family_of

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
common = {
    "method": {"lora": {"rank": 2, "targets": ["attention", "mlp"]}},
    "train": {"strategy": "sign", "max_steps": 2, "batch_examples": 4, "device": "cpu", "log": ["lines"]},
}
recipe = read({
    "model": {"init": {"architecture": "llama", **sizes}, "tokenizer": "bundled/tiny"},
    "objective": "focal",
    "dataset": {"name": "bundled/e2e", "limit": 4},
    **common,
})
summary = train(recipe, run.parent / "decoder")
assert summary.losses["last"] < summary.losses["first"]
logged = (run.parent / "decoder" / "figures.csv").read_text().splitlines()
assert f'2,loss,{summary.losses["last"]}' in logged and any(line.startswith("0,losses/last,") for line in logged)
labelled = run.parent / "train.jsonl"
labelled.write_text("\\n".join('{"text": "%s", "label": %d}' % ("ab"[n % 2] * 9, n % 2) for n in range(4)))
recipe = read({
    "model": {"init": {"architecture": "bert", **sizes}, "tokenizer": "bundled/tiny"},
    "objective": encoder.Encoder.objective,
    "dataset": {"name": "jsonl", "path": str(labelled)},
    **common,
})
assert type(family_of(load(recipe.model).model.config)) is encoder.Encoder
assert train(recipe, run.parent / "encoder").steps == 2
print("all of them work")
"""


def test_the_code_of_contributing_works(tmp_path):
    for name, text in zip(EXAMPLES, blocks(CONTRIBUTING, "python"), strict=True):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    paths = os.pathsep.join((str(ROOT / "core"), str(ROOT / "cli")))
    done = subprocess.run(
        [sys.executable, "-c", EXERCISE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "all of them work\n", done.stderr


def test_every_kind_is_told_in_thirty_lines():
    sections = re.split(r"^## ", CONTRIBUTING, flags=re.MULTILINE)[1:]
    lines = {section.splitlines()[0]: sum(map(bool, map(str.strip, section.splitlines()))) for section in sections}
    assert len(lines) >= 10
    assert max(lines.values()) <= 30, lines
