"""IDPG makes the soft prompt of each example from the frozen model's reading of it (Wu et al. 2022)."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from peftkit.errors import PeftkitError
from peftkit.layers.prompt_places import AtPrompt, put_rows
from peftkit.layers.prompted import ExamplePrompt, mean_over
from peftkit.layout import Layout, Site
from peftkit.methods.prompt_tuning import PromptTuning, start_rows
from peftkit.ports.adapter import Adapter, Call
from peftkit.ports.linear import linear


@dataclass(frozen=True, kw_only=True)
class IDPG(PromptTuning, name="idpg"):
    """The example's prompt is W2 ReLU(W1 M(x) + b1) + b2 [length, width]; M(x) [width] is the frozen model's reading.

    M(x) is the mean of the base's last hidden states at the tokens that are answered, from a pass of its own, so that
    training and generation read alike; W1 [bottleneck, width] and b1 start as torch's linear layers. W2 = sum over i of
    A_i (x) B_i with A [division, division, division] and B [division, length width / division, bottleneck / division]
    zero at the start, when the prompt is b2 for all: a soft prompt, which starts as in `prompt-tuning`. `depth: every`
    puts rows of their own into the states of the prompt at each layer, with the one W1; their b2 starts from N(0,
    0.02^2). Examples are padded and share nothing.
    """

    port: ClassVar[str] = "embedding + hidden"
    paper: ClassVar[str] = "Wu et al. 2022, arXiv:2204.04497"
    summary: ClassVar[str] = (
        "Makes a soft prompt for each example with a small generator, which reads what the frozen model makes of it. "
        "That costs one more forward pass over the prompt."
    )
    default_learning_rate: ClassVar[float] = 0.01
    rate_falls_with_width: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    length: Annotated[int, Ge(1)] = 5
    """Number of prompt embeddings."""
    bottleneck: Annotated[int, Ge(1)] = 64
    """Inner size of the generator; 16 to 256 in the paper."""
    division: Annotated[int, Ge(1)] = 16
    """Number of Kronecker products that W2 is the sum of; it divides `bottleneck` and length times width."""
    depth: Literal["input", "every"] = "input"
    """Whether the prompt is made for the input alone, or for every layer."""

    def share(self, layout: Layout) -> nn.Module:
        return PromptReading(self, layout)

    def sites(self, layout: Layout) -> list[Site]:
        wrong = next((n for n in (self.bottleneck, self.length * layout.width) if n % self.division), None)
        if wrong is not None:
            able = math.gcd(self.bottleneck, self.length * layout.width)
            raise PeftkitError(
                f"{self.name}: division {self.division} does not divide bottleneck {self.bottleneck} and length times "
                f"width {self.length * layout.width}: take a divisor of {able}."
            )
        # What a layer reads is what the one below it gives.
        below = range(len(layout.blocks) - 1) if self.depth == "every" else range(0)
        return [*super().sites(layout), *(layout.hidden("block", below) if below else [])]

    def build(self, site: Site) -> Adapter:
        if site.role == "embedding":
            return GeneratedPrompt(site, self)
        return GeneratedStates(site, self)


class PromptReading(nn.Module):
    """What all layers share: the base's reading of a prompt, and W1 [bottleneck, width] and b1 behind it."""

    def __init__(self, method: IDPG, layout: Layout):
        super().__init__()
        self.__dict__["body"] = layout.body()
        self.inner = nn.Linear(layout.width, method.bottleneck)

    def forward(self, ids: Tensor, prompt: Tensor, index: Tensor, context: Any) -> Tensor:
        """Return ReLU(W1 M(x) + b1) [B, bottleneck] for ids [B, T], of which `prompt` [B, T] are read."""
        given = {"input_ids": ids * prompt, "attention_mask": prompt.long(), "position_ids": index.clamp(min=0)}
        body: nn.Module = self.__dict__["body"]
        named = inspect.signature(body.forward).parameters
        given = {name: value for name, value in given.items() if name in named}
        with torch.no_grad(), context.apart():
            hidden = body(**given, use_cache=False)[0]
        hidden = torch.where(prompt.unsqueeze(-1), hidden, 0)
        return torch.relu(linear(mean_over(hidden, prompt), self.inner.weight, self.inner.bias))


class Generator(nn.Module):
    """Rows [B, length, width] of inner states z [B, bottleneck]: W2 z + b2."""

    undecayed: ClassVar[tuple[str, ...]] = ("b",)

    def __init__(self, method: IDPG, width: int, start: Tensor):
        super().__init__()
        n, self.length = method.division, method.length
        self.A = nn.Parameter(torch.randn(n, n, n) / n)
        self.B = nn.Parameter(torch.zeros(n, self.length * width // n, method.bottleneck // n))
        self.b = nn.Parameter(start)

    def forward(self, z: Tensor) -> Tensor:
        n = len(self.A)
        inside = torch.einsum("bjd,xcd->bxjc", z.unflatten(1, (n, -1)), self.B.to(z.dtype))
        rows = torch.einsum("bxjc,xaj->bac", inside, self.A.to(z.dtype))
        return rows.reshape(len(z), self.length, -1) + self.b.to(z.dtype)


class GeneratedPrompt(ExamplePrompt):
    """The rows at the input."""

    def __init__(self, site: Site, method: IDPG):
        super().__init__(site, method.length)
        self.generator = Generator(method, site.outputs, start_rows(site, method, method.length))

    @property
    def drawn(self) -> Tensor | None:
        return self.generator.b

    def rows_of(self, y: Tensor, prompt: Tensor) -> Tensor:
        tokens = self.tokens
        inner = self.shared(tokens.ids, prompt, tokens.index, self.context)
        self.context.tape[self.shared.inner] = inner
        return self.generator(inner)


class GeneratedStates(AtPrompt):
    """The rows that stand in the place of the prompt's states behind one layer."""

    def __init__(self, site: Site, method: IDPG):
        super().__init__(site)
        start = torch.randn(method.length, site.outputs) * 0.02
        self.generator = Generator(method, site.outputs, start)

    def forward(self, call: Call, x: Tensor) -> Tensor:
        y, inner, slots = call(x), self.context.tape.get(self.shared.inner), self.slots
        return y if inner is None or slots is None else put_rows(y, self.generator(inner), slots, self.streams)
