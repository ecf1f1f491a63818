"""A toy of every kind as its one file would be written, and what is replaced in those that break their word."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Toy:
    """A kind of entry: where its file belongs, its text, and edits that a test of the kind has to see."""

    place: str
    """The folder below the core."""
    text: str
    """Names itself `toy`."""
    wrong: dict[str, tuple[str, str]] = field(default_factory=dict)
    tests: int = 3
    """So many tests at least hold the entry."""
    holding: str = "test_"
    """What the names of the tests have in common to which those that break their word are held."""

    def files(self, kind: str) -> dict[str, str]:
        """Return the texts by name: the toy, and those that break their word."""
        texts = {f"toy_{kind}": self.text.replace("TOY", f"toy_{kind}")}
        for fault, (right, other) in self.wrong.items():
            assert self.text.count(right) == 1, (kind, right)
            texts[f"wrong_{kind}_{fault}"] = self.text.replace(right, other).replace("TOY", f"wrong_{kind}_{fault}")
        return texts


METHOD = '''"""A toy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peftkit.layout import Layout, Site
from peftkit.method import Method, Targeted
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.attention import Attend, AttentionAdapter
from peftkit.ports.embedding import SoftPrompt
from peftkit.ports.linear import LinearAdapter
from peftkit.ports.stored import Scales, check_stored
from peftkit.quantization.weight import INTEGERS

'''
LINEAR = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Targeted, name="TOY"):
    """(1 + f) W x with f [out], zero at the start."""

    def build(self, site: Site) -> Adapter:
        return Factors(site)


class Factors(LinearAdapter):
    def __init__(self, site: Site):
        super().__init__(site)
        self.f = nn.Parameter(torch.zeros(site.outputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y * (1 + self.f).to(y.dtype)

    def merge(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factors = 1 + self.f
        return weight * factors[:, None], None if bias is None else bias * factors
'''
)
HIDDEN = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="TOY"):
    """y (1 + g) + b with g and b [width], zero at the start."""

    port, mergeable = "hidden", False

    def sites(self, layout: Layout) -> list[Site]:
        return layout.hidden("mlp")

    def build(self, site: Site) -> Adapter:
        return Gate(site)


class Gate(Adapter):
    def __init__(self, site: Site):
        super().__init__(site)
        self.g = nn.Parameter(torch.zeros(site.outputs))
        self.b = nn.Parameter(torch.zeros(site.outputs))

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y = call(x)
        return y * (1 + self.g).to(y.dtype) + self.b.to(y.dtype)
'''
)
ATTENTION = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="TOY"):
    """attend(q, k, v + b) with b [keys' heads, size], zero at the start."""

    port, mergeable = "attention", False

    def sites(self, layout: Layout) -> list[Site]:
        return layout.attention()

    def build(self, site: Site) -> Adapter:
        return Shift(site)


class Shift(AttentionAdapter):
    def __init__(self, site: Site):
        super().__init__(site)
        self.b = nn.Parameter(torch.zeros(site.parts["v"].outputs))

    def forward(self, attend: Attend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *x: Tensor) -> Tensor:
        return attend(q, k, v + self.b.view(v.shape[1], 1, -1).to(v.dtype), mask)
'''
)
EMBEDDING = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="TOY"):
    """A prompt of free rows P [4, width]."""

    port, mergeable = "embedding", False

    def sites(self, layout: Layout) -> list[Site]:
        return [layout.embedding()]

    def build(self, site: Site) -> Adapter:
        return Rows(site, 4)


class Rows(SoftPrompt):
    undecayed = ("P",)

    def __init__(self, site: Site, length: int):
        super().__init__(site, length)
        self.P = nn.Parameter(torch.randn(length, site.outputs))

    def rows(self) -> Tensor:
        return self.P
'''
)
OWN = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Method, name="TOY"):
    """The weights of the normalisation layers are trained."""

    port = "own parameters"

    def select(self, layout: Layout, name: str, parameter: nn.Parameter) -> bool:
        return name.rpartition(".")[0] in layout.norms()

    def saved(self, layout: Layout) -> int | None:
        return None
'''
)
STORED = (
    METHOD
    + '''
@dataclass(frozen=True, kw_only=True)
class Toy(Targeted, name="TOY"):
    """The scales of weights that are stored as whole numbers are trained."""

    needs: ClassVar[str | None] = INTEGERS

    targets: Any = "linear"

    def sites(self, layout: Layout) -> list[Site]:
        return check_stored(super().sites(layout), self.name, self.needs)

    def build(self, site: Site) -> Adapter:
        return Mine(site)


class Mine(Scales):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        return super().forward(call, x)
'''
)
OBJECTIVE = '''"""A toy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from peftkit.objectives import Loss, Objective, Outputs, Predictions, TokenFunction


class Focal(TokenFunction):
    """(1 - p)^2 times -log p of the target."""

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        surprise = F.cross_entropy(logits.float(), targets, reduction="none")
        return (1 - (-surprise).exp()).square() * surprise


@dataclass(frozen=True, kw_only=True)
class Toy(Objective, name="TOY"):
    """The focal loss of next tokens."""

    summary: ClassVar[str] = "Predicts the next token, above all where it is hard."

    def loss(self, outputs: Outputs, batch: Predictions) -> Loss:
        values = outputs.values(Focal())
        return Loss(values.sum(), batch.trained, {"focal": values.detach()})
'''
STRATEGY = '''"""A toy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from peftkit.data.batches import Batch
from peftkit.engine.passes import Passes
from peftkit.strategies import Step, Strategy, Update


@dataclass(frozen=True, kw_only=True)
class Toy(Strategy, name="TOY"):
    """A step along the signs of the gradients."""

    summary: ClassVar[str] = "Steps along the signs of the gradients."

    def step(self, passes: Passes, batches: Sequence[Batch], normaliser: int, update: Update) -> Step:
        result = passes.backward(batches, normaliser)
        gradients = [p.grad for p in update.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).item()
        update.check(result.loss / normaliser, norm)
        with torch.no_grad():
            for parameter in update.parameters:
                if parameter.grad is not None:
                    parameter -= update.rate * parameter.grad.sign()
        update.optimizer.zero_grad()
        return Step(result, norm)
'''
OPTIMIZER = '''"""A toy."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from peftkit.optim import OPTIMIZERS


@OPTIMIZERS.register("TOY")
class Toy(torch.optim.Optimizer):
    """Gradient descent with momentum."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float):
        super().__init__([dict(group) for group in groups], {"momentum": betas[0]})
        self.held: dict[Any, Any] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "speed" not in state:
                    state["speed"] = torch.zeros_like(parameter)
                state["speed"].mul_(group["momentum"]).add_(parameter.grad)
                parameter.sub_(state["speed"], alpha=group["lr"])

    @staticmethod
    def state_bytes(group: Mapping[str, Any], device: torch.device) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in group["params"])

    @staticmethod
    def state_shapes(group: Mapping[str, Any], parameter: torch.Tensor) -> dict[str, Sequence[int]]:
        return {"speed": parameter.shape}
'''
FAMILY = '''"""A toy: small encoders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from transformers import AutoModelForMaskedLM

from peftkit.families import FAMILIES, Family


class Encoder(Family):
    """An encoder whose tokens attend to both sides, with a head over the vocabulary."""

    loader = AutoModelForMaskedLM
    examples = "text"
    objective = "classification"

    def architectures(self) -> Collection[str]:
        return ["bert"]

    def refusal(self, config: Any) -> str | None:
        return None if config.model_type in self.architectures() else f"{config.model_type} is no toy."

    def names(self, architecture: str) -> Mapping[str, Any]:
        attention = {"attention": ["attention"], "q": ["self.query"], "k": ["self.key"], "v": ["self.value"]}
        rest = {"mlp": [], "o": ["output.dense"], "gate": [], "up": ["intermediate.dense"], "down": ["output.dense"]}
        return {**attention, **rest, "fused": {}}


FAMILIES.add("TOY", Encoder())
'''
FORMAT = '''"""A toy."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from peftkit.quantization.blocks import Blockwise


@dataclass(frozen=True, kw_only=True)
class Toy(Blockwise, name="TOY"):
    """-1, 0, 1/2 and 1 times the largest absolute value of a block."""

    bits: ClassVar[int] = 2
    code: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 0.5, 1.0)
    paper: ClassVar[str] = "none"
    summary: ClassVar[str] = "Coarse, 4 values a block."

    def decode(self, parts, shape: tuple[int, int]) -> Tensor:
        return super().decode(parts, shape)
'''
TASK = '''"""A toy."""

from pathlib import Path

from peftkit.data.example import Example, question
from peftkit.data.records import read_csv, text
from peftkit.tasks.task import TASKS, Task


class Capitals(Task):
    """Name the capital of a country."""

    name, metrics, max_new_tokens = "TOY", ("rouge_l",), 16
    files = {split: (f"{split}.csv",) for split in ("train", "validation", "test")}

    def read_file(self, path: Path) -> list[Example]:
        examples = []
        for line, record in read_csv(path, ("country", "capital")):
            asked, answer = (text(record[key], f"{path}, line {line}", key) for key in ("country", "capital"))
            examples.append(question(f"{path.name}:{line}", asked, answer))
        return examples


TASKS.add(Capitals.name, Capitals())
'''
SAMPLE = "country,capital\nPeru,Lima\nBolivia,Sucre\nBolivia,La Paz\n"
"""The sample of the task, for each of its splits."""
METRIC = '''"""A toy."""

from collections.abc import Sequence

from peftkit.metrics import metric


@metric("TOY", "length")
def length(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean number of words."""
    return {"length": sum(len(prediction.split()) for prediction in predictions) / len(predictions)}
'''
EXPORT = '''"""A toy."""

from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.export.formats import FORMATS
from peftkit.export.trained import open_run
from peftkit.models.samples import logits


@FORMATS.register("TOY")
def toy(run: Path, output: Path) -> dict[str, Any]:
    """The model with its adapter merged, as transformers saves it."""
    with files.new_folder(output) as folder:
        trained = open_run(run)
        before = logits(trained.model, trained.tokenizer)
        trained.adaptation.merge_()
        after = logits(trained.model, trained.tokenizer)
        weights = {key: value for key, value in trained.model.state_dict().items() if ".seated." not in key}
        trained.model.save_pretrained(folder, state_dict=weights)
        trained.tokenizer.save_pretrained(folder)
        apart = (after - before).abs().max().item()
    return {
        "format": "TOY",
        "output": str(output),
        "max_difference": apart,
        "scale": before.abs().max().item(),
        "bound": 1e-4,
    }
'''
DECLARED = "start_is or declared or merged_equals"
TOYS = {
    "linear": Toy(
        "methods",
        LINEAR,
        {
            "frozen": ("(1 + self.f).to", "(1 + self.f.detach()).to"),
            "merge": ("weight * factors[:, None]", "weight + factors[:, None]"),
            "start": ("torch.zeros(site.outputs)", "torch.ones(site.outputs)"),
        },
        20,
        DECLARED,
    ),
    "hidden": Toy("methods", HIDDEN, {"frozen": ("1 + self.g)", "1 + self.g.detach())")}, 20, DECLARED),
    "attention": Toy("methods", ATTENTION, {"start": ("torch.zeros(site", "torch.ones(site")}, 20, DECLARED),
    "embedding": Toy("methods", EMBEDDING, {"frozen": ("return self.P", "return self.P.detach()")}, 20, DECLARED),
    "own": Toy("methods", OWN, {"saved": ("return None", "return 1")}, 20, "numbers_that_are_stated"),
    "stored": Toy(
        "methods", STORED, {"start": ("super().forward(call, x)", "super().forward(call, x + 1)")}, 20, DECLARED
    ),
    "objective": Toy(
        "objectives", OBJECTIVE, {"packed": ("* surprise", "* surprise + len(targets)")}, holding="packed"
    ),
    "strategy": Toy(
        "strategies",
        STRATEGY,
        {
            "all": (
                "in update.parameters:",
                "in update.adaptation.model.parameters():\n                parameter += 1e-3",
            )
        },
        holding="trained_alone",
    ),
    "optimizer": Toy("optim", OPTIMIZER, {"state": ("self.state[parameter]", "self.held.setdefault(parameter, {})")}),
    "family": Toy("families", FAMILY, {"roles": ('["bert"]', '["electra"]')}, holding="block"),
    "format": Toy(
        "quantization/formats",
        FORMAT,
        {"bound": ("return super().decode(parts, shape)", "return 2 * super().decode(parts, shape)")},
        holding="bound",
    ),
    "task": Toy(
        "tasks",
        TASK,
        {"lost": ("asked, answer))", "asked, answer).__class__(str(line), ()))")},
        tests=2,
        holding="arrives",
    ),
    "metric": Toy(
        "metrics", METRIC, {"order": ("for prediction in predictions)", "for prediction in predictions[:1])")}
    ),
    "export": Toy("export", EXPORT, {"weights": ("for key, value in", "* 2 for key, value in")}, holding="opens"),
}
"""The kinds of entries; of methods one for each port."""
