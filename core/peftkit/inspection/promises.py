"""What every method promises: functions that hold one to it on a tiny random model, each under its words."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peftkit.adaptation import Adaptation, attach, load_adapter, save_adapter
from peftkit.data.batches import collate
from peftkit.data.encode import Encoded, insert
from peftkit.engine.engine import Arrangement, choose
from peftkit.engine.packed_batch import prompts
from peftkit.errors import PeftkitError
from peftkit.method import Method
from peftkit.models.fingerprint import fingerprint
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import VOCABULARY, tiny
from peftkit.objectives.cross_entropy import CrossEntropy
from peftkit.optim.build import Optimizers
from peftkit.ports.context import context_of
from peftkit.quantization.quantizer import QUANTIZERS, Quantizer, formats

CPU = torch.device("cpu")
NOISE = 0.1
"""Standard deviation of what trained tensors are moved by, so that they are not at their start."""
STEPS = 40
RATE = 1e-2
"""Steps, and their learning rate, within which a batch of four rows has to be learnt in part."""


class Broken(Exception):  # noqa: N818
    """A promise that a method does not keep."""


class Apart(Exception):  # noqa: N818
    """The reason why a promise does not apply to a method."""


@dataclass(frozen=True)
class Subject:
    """A method and the architecture that it is held on."""

    method: Method
    architecture: str

    def model(self) -> nn.Module:
        """Build the base, the same each time, stored as the method needs it."""
        base = tiny(self.architecture)
        if self.method.needs is not None:
            quantize(base, Quantization(_small(formats(self.method.needs)[0])))
        return base

    def attached(self, *, moved: bool = True) -> tuple[nn.Module, Adaptation]:
        """Attach it to a fresh base; what it trains is `moved` from where it starts."""
        model = self.model().eval()
        adaptation = attach(model, [self.method])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, parameter in adaptation.parameters() if moved else ():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=NOISE)
        return model, adaptation


def _small(name: str) -> Quantizer:
    """Build a format with options for layers of 32 inputs."""
    options = QUANTIZERS[name]().options()
    return QUANTIZERS[name].from_options({key: 16 for key in ("group_size", "block_size") if key in options})


Promise = Callable[[Subject], str | None]
PROMISES: dict[str, Promise] = {}


def promise(words: str) -> Callable[[Promise], Promise]:
    """Register the decorated function, which tells a figure, or None where it does not apply; Broken says how not."""

    def decorate(hold: Promise) -> Promise:
        PROMISES[words] = hold
        return hold

    return decorate


def _ids(rows: int = 2, length: int = 9) -> Tensor:
    """Draw token ids [rows, length], none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def _logits(model: nn.Module, ids: Tensor, adaptation: Adaptation | None = None) -> Tensor:
    """Return the logits [B, T, vocabulary] at the ids, behind the adaptation's soft prompt where it has one."""
    soft = torch.tensor([] if adaptation is None else adaptation.soft_ids, dtype=torch.long).expand(ids.shape[0], -1)
    return model(input_ids=torch.cat([soft, ids], 1)).logits[:, soft.shape[1] :]


def _distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@promise("starts where the base is")
@torch.no_grad()
def _starts(subject: Subject) -> str | None:
    ids = _ids()
    base = _logits(subject.model().eval(), ids)
    model, adaptation = subject.attached(moved=False)
    moved = _distance(_logits(model, ids, adaptation), base)
    return f"within {moved:.1e}" if moved < 1e-4 else None


@promise("changes what the model says")
@torch.no_grad()
def _changes(subject: Subject) -> str:
    model, adaptation = subject.attached()
    before = _logits(subject.model().eval(), _ids())
    moved = _distance(_logits(model, _ids(), adaptation), before)
    if not moved:
        raise Broken("its trained tensors were moved, and no logit was")
    return f"by {moved:.1e}"


@promise("leaves the base as it was")
@torch.no_grad()
def _leaves(subject: Subject) -> str:
    ids = _ids()
    base = subject.model().eval()
    expected, tensors = _logits(base, ids), {key: value.clone() for key, value in base.state_dict().items()}
    model, adaptation = subject.attached()
    _logits(model, ids, adaptation)
    with adaptation.disabled():
        if not torch.equal(_logits(model, ids), expected):
            raise Broken("with the adaptation disabled the logits are not the base's")
    adaptation.remove()
    left = model.state_dict()
    changed = [key for key, value in tensors.items() if key not in left or not torch.equal(value, left[key])]
    if changed or not torch.equal(_logits(model, ids), expected):
        raise Broken(f"after it is removed the base is another one{f': {changed[0]}' if changed else ''}")
    return "bit for bit"


@promise("is saved and loaded")
@torch.no_grad()
def _saved(subject: Subject) -> str:
    ids = _ids()
    model, adaptation = subject.attached()
    adaptation.finish()
    expected = _logits(model, ids, adaptation)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(
            adaptation, Path(folder) / "adapter", {"name": "tiny", "fingerprint": fingerprint(subject.model())}
        )
        again = subject.model().eval()
        torch.manual_seed(99)
        loaded = load_adapter(again, Path(folder) / "adapter", fingerprint(again))
        size = sum(file.stat().st_size for file in (Path(folder) / "adapter").glob("*.safetensors"))
    if not torch.equal(_logits(again, ids, loaded), expected):
        raise Broken(f"the loaded one's logits differ by {_distance(_logits(again, ids, loaded), expected):.1e}")
    return f"bit for bit, {size:,} bytes"


@promise("merges into the weights")
@torch.no_grad()
def _merges(subject: Subject) -> str | None:
    model, adaptation = subject.attached()
    if adaptation.unmergeable() is not None or subject.method.needs is not None:
        return None
    expected = _logits(model, _ids(), adaptation)
    adaptation.merge_()
    distance = _distance(_logits(model, _ids(), adaptation), expected)
    if distance > 1e-4:
        raise Broken(f"the merged model's logits differ by {distance:.1e}")
    return f"within {distance:.1e}"


@promise("packed rows are each alone")
def _packed(subject: Subject) -> str:
    model, adaptation = subject.attached()
    parameters = dict(adaptation.parameters())
    given = [insert(row, adaptation.soft_ids, 0) for row in _rows()]
    alone = 0.0
    for row in given:
        batch = collate([row], 0)
        with context_of(model).prompted(prompts(batch)):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
        loss.backward()
        alone += loss.item()
    expected = {key: parameter.grad for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    engine, notices = choose(model, given, 0, CPU, Arrangement(), adaptation.methods)
    if notices and not subject.method.by_row:
        raise Broken(f"{notices[0]} If that is meant, say so with `by_row = True`.")
    packed = engine.pack(collate(given, 0))
    with engine.running(packed):
        together = CrossEntropy().loss(engine.forward(packed), packed).sum
        together.backward()
    if abs(together.item() - alone) > 1e-4 + 1e-5 * alone:
        raise Broken(f"the loss of packed rows is {together.item():.5f}, and {alone:.5f} row by row")
    for key, parameter in parameters.items():
        one, other = expected[key], parameter.grad
        if (one is None) != (other is None):
            raise Broken(f"{key} has a gradient in one of them alone")
        if one is not None and other is not None and _distance(one, other) > 1e-4 * (1 + one.abs().max().item()):
            raise Broken(f"the gradient of {key} differs by {_distance(one, other):.1e}")
    return f"loss within {abs(together.item() - alone):.1e}"


def _rows() -> list[Encoded]:
    """Rows of unequal length, some of which begin alike."""
    start, rest = _ids(1, 8)[0].tolist(), _ids(4, 7).tolist()
    texts = [start + rest[0], start + rest[1][:3], rest[2], [*rest[3], *start]]
    return [Encoded(ids, [-100] * 3 + ids[3:]) for ids in texts]


@promise("learns")
def _learns(subject: Subject) -> str:
    torch.manual_seed(0)
    model, adaptation = subject.attached(moved=False)
    ids = _ids(4, 12)
    optimizers = Optimizers(adaptation.groups(RATE, 0.0))
    losses = []
    model.train()
    for step in range(STEPS):
        adaptation.context.step = step
        loss = F.cross_entropy(_logits(model, ids, adaptation)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        further = [each for each in (adaptation.penalty(), adaptation.aux_loss()) if each is not None]
        sum(further, loss).backward()
        adaptation.after_backward(step, STEPS)
        optimizers.step()
        adaptation.after_step(step, STEPS)
        optimizers.zero_grad()
    if not losses[-1] < losses[0]:
        raise Broken(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps at a rate of {RATE:g}")
    return f"{losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps at a rate of {RATE:g}"


@promise("stands on a packed base")
@torch.no_grad()
def _stands(subject: Subject) -> str | None:
    if subject.method.needs is not None:
        return None
    able = [name for name, cls in QUANTIZERS.items() if not cls.calibrated]
    for name in able:
        model = tiny(subject.architecture).eval()
        quantize(model, Quantization(_small(name)))
        try:
            adaptation = attach(model, [subject.method])
        except PeftkitError as error:
            # A weight that is packed has no gradient: who trains weights themselves refuses it.
            raise Apart(f"{name} is refused: {error}") from None
        if not torch.isfinite(_logits(model, _ids(), adaptation)).all():
            raise Broken(f"on {name} its logits are not finite")
    return ", ".join(able)
