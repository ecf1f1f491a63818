"""Adapters made into one: sums of changes are exact, sums of tensors are sums, and what means nothing is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from draw import marked, share
from facts import facts
from storages import needed, small
from torch import Tensor

from peftkit.adaptation import DESCRIPTION, TENSORS, WAYS, Source, attach, combine, load_adapter, save_adapter
from peftkit.adaptation.changes import Change, bounded, truncated
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import METHODS
from peftkit.models.fingerprint import fingerprint
from peftkit.models.quantize import Quantization, quantize
from peftkit.models.tiny import VOCABULARY, tiny
from peftkit.quantization.quantizer import Quantizer
from peftkit.quantization.weight import dense, store
from peftkit.tensor_file import read_tensors, write_tensors

IDS = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
EPSILON = torch.finfo(torch.float32).eps
Choice = tuple[str, Mapping[str, Any]]
LOW_RANK: list[Choice] = [
    ("lora", {"rank": 3, "alpha": 5.0, "targets": ["q", "v", "down"]}),
    ("lora", {"rank": 5, "rank_stabilised": True, "targets": "linear", "layers": "1", "rank_pattern": {"o": 2}}),
    ("moslora", {"rank": 2, "targets": "attention", "alpha_pattern": {"k": 7.0}}),
]
WEIGHTS = (0.7, -1.5, 2.0)


class Base:
    """A tiny model, and adapters of it with random values in a folder."""

    def __init__(self, folder: Path, architecture: str = "llama", quantizer: Quantizer | None = None):
        self.folder, self.architecture, self.quantizer = folder, architecture, quantizer

    def model(self) -> Any:
        """Build the base."""
        model = tiny(self.architecture)
        if self.quantizer is not None:
            quantize(model, Quantization(self.quantizer))
        return model

    def save(self, choice: Choice, seed: int) -> Path:
        """Save an adapter of one method whose trained tensors were moved by normal noise of the seed."""
        model, (name, options) = self.model(), choice
        adaptation = attach(model, [METHODS[name].from_options(options)])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in adaptation.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        adaptation.finish()
        folder = self.folder / f"{name}-{seed}"
        storage = Quantization(self.quantizer).description()
        save_adapter(adaptation, folder, {"name": "tiny", "fingerprint": fingerprint(tiny(self.architecture))})
        description = json.loads((folder / DESCRIPTION).read_text())
        description["base"]["quantization"] = storage
        (folder / DESCRIPTION).write_text(json.dumps(description))
        return folder

    def sources(self, choices: Sequence[Choice], weights: Sequence[float]) -> list[Source]:
        """Save an adapter for each choice."""
        pairs = enumerate(zip(choices, weights, strict=True), 1)
        return [Source(f"run {seed}", self.save(choice, seed), weight) for seed, (choice, weight) in pairs]

    def adapted(self, folder: Path) -> Any:
        """Load an adapter on a base of its own."""
        model = self.model()
        load_adapter(model, folder, None)
        return model


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Base]:
    return lambda *choices: Base(tmp_path, *choices)


def logits(model: Any) -> Tensor:
    """Run the model behind its soft prompt, if it has one."""
    soft = [index for one in model.__dict__["_peftkit"].adaptations.values() for index in one.soft_ids]
    ids = torch.cat([torch.tensor(soft, dtype=torch.long).expand(len(IDS), -1), IDS], 1)
    with torch.no_grad():
        return model(input_ids=ids).logits[:, len(soft) :]


def changes(base: Base, folder: Path) -> dict[str, Tensor]:
    """Return by module what attaching and merging the adapter changes of the base's weights, in fp64."""
    model, plain = base.model(), base.model()
    adaptation = load_adapter(model, folder, None)
    paths = {adapter.site.path for part in adaptation.parts for adapter in part.adapters.values()}
    adaptation.merge_()
    weights = {path: [dense(one.get_submodule(path)).detach().double() for one in (model, plain)] for path in paths}
    return {path: merged - before for path, (merged, before) in weights.items()}


def summed(base: Base, sources: Sequence[Source]) -> dict[str, Tensor]:
    """Return the weighted sum of what the sources change."""
    total: dict[str, Tensor] = {}
    for source in sources:
        for path, change in changes(base, source.folder).items():
            total[path] = total.get(path, torch.zeros_like(change)) + source.weight * change
    return total


def close(one: Tensor, other: Tensor, terms: int = 256) -> bool:
    """Say whether two results of about so many fp32 operations of the size of `other` agree."""
    return bool((one - other).abs().max() <= terms * EPSILON * other.abs().max())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_a_concatenation_is_the_sum_of_the_changes(base, architecture, storage):
    one = base(architecture, None if storage == "dense" else small(storage))
    sources = one.sources(LOW_RANK, WEIGHTS)
    expected = summed(one, sources)
    model, twin = one.model(), tiny(architecture)
    for path in {site.path for site in Layout(twin).linears}:
        weight = dense(model.get_submodule(path)).detach().double()
        store(twin.get_submodule(path), (weight + expected.get(path, 0)).float())
    adaptation = combine(model, sources, "concatenate").adaptation
    save_adapter(adaptation, one.folder / "sum", {"name": "tiny"})
    hold_equal(changes(one, one.folder / "sum"), expected)
    with torch.no_grad():
        assert close(logits(model), twin(input_ids=IDS).logits, terms=1024)


def hold_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Assert that changes agree up to the rounding of weights of about one that they were added to."""
    assert set(found) == set(expected)
    for path, change in expected.items():
        assert change.abs().max() > 0.01
        assert (found[path] - change).abs().max() <= 64 * EPSILON * max(1.0, float(change.abs().max())), path


def test_starts_taken_out_of_the_weight_are_subtracted(base):
    one = base("llama")
    sources = one.sources([("lora", {"rank": 3, "init": "pissa"}), ("lora", {"rank": 4, "init": "olora"})], (0.5, 2.0))
    model = one.model()
    save_adapter(combine(model, sources, "concatenate").adaptation, one.folder / "sum", {"name": "tiny"})
    hold_equal(changes(one, one.folder / "sum"), summed(one, sources))


def test_ranks_beyond_what_a_layer_allows_become_its_own(base):
    one = base("gpt2")
    sources = one.sources([("lora", {"rank": 20, "targets": ["linear"]})] * 3, (1.0, 1.0, -0.5))
    model = one.model()
    adaptation = combine(model, sources, "concatenate").adaptation
    assert max(adapter.A.shape[0] for part in adaptation.parts for adapter in part.adapters.values()) == 32
    save_adapter(adaptation, one.folder / "sum", {"name": "tiny"})
    hold_equal(changes(one, one.folder / "sum"), summed(one, sources))


def test_a_fused_module_is_a_target_as_a_whole_and_by_its_parts(base):
    one = base("gpt2")
    sources = one.sources([("lora", {"targets": ["c_attn"]}), ("lora", {"targets": ["k"], "layers": "0"})], (1.0, 2.0))
    for how, rank in (("concatenate", None), ("svd", 16)):
        adaptation = combine(one.model(), sources, how, rank).adaptation
        save_adapter(adaptation, one.folder / "sum", {"name": "tiny"})
        hold_equal(changes(one, one.folder / "sum"), summed(one, sources))
    (part,) = combine(one.model(), sources, "svd", 12).adaptation.parts
    assert {adapter.A.shape[0] for adapter in part.adapters.values()} == {8, 12}


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4)])
def test_a_tall_pair_is_its_product(inputs, outputs):
    torch.manual_seed(0)
    site = Site("layer", torch.nn.Linear(inputs, outputs), inputs, outputs)
    change = Change(site, torch.randn(9, inputs), torch.randn(outputs, 9))
    small_one = bounded(change)
    assert small_one.rank == 4
    assert torch.allclose(small_one.up @ small_one.down, change.up @ change.down, atol=1e-5)


def test_truncation_leaves_the_singular_values_that_it_drops():
    torch.manual_seed(0)
    change = Change(Site("layer", torch.nn.Linear(7, 9), 7, 9), torch.randn(5, 7), torch.randn(9, 5))
    whole = (change.up @ change.down).double()
    cut, values = truncated(change, 2)
    assert torch.allclose(values, torch.linalg.svdvals(whole)[:5], rtol=1e-5)
    left = torch.linalg.norm(whole - (cut.up @ cut.down).double())
    assert torch.allclose(left, values[2:].square().sum().sqrt(), rtol=1e-5)


@pytest.mark.parametrize("rank", [2, None])
def test_svd_tells_the_error_of_the_dense_sum(base, rank):
    one = base("llama")
    sources = one.sources(LOW_RANK[:2], (1.0, 0.5))
    result = combine(one.model(), sources, "svd", rank)
    lost = whole = 0.0
    for change in summed(one, sources).values():
        values = torch.linalg.svdvals(change).square()
        lost, whole = lost + float(values[rank or 5 :].sum()), whole + float(values.sum())
    assert result.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert result.error > 0.05
    save_adapter(result.adaptation, one.folder / "cut", {"name": "tiny"})
    found = changes(one, one.folder / "cut")
    assert max(int(torch.linalg.matrix_rank(change, rtol=1e-4)) for change in found.values()) == (rank or 5)


def test_svd_with_all_ranks_loses_nothing(base):
    one = base("llama")
    sources = one.sources(LOW_RANK, WEIGHTS)
    assert combine(one.model(), sources, "svd", 32).error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("how", ["linear", "average"])
def test_prompts_are_summed_and_averaged(base, how):
    one = base("llama")
    sources = one.sources([("prompt-tuning", {"length": 4})] * 2, (1.0, 3.0))
    state = combine(one.model(), sources, how).adaptation.state()
    first, second = (read_tensors(source.folder / TENSORS) for source in sources)
    scale = 1.0 if how == "linear" else 0.25
    for key, tensor in state.items():
        assert torch.allclose(tensor, scale * first[key] + 3 * scale * second[key], atol=1e-6)
        assert not torch.allclose(first[key], second[key])


def test_own_parameters_are_summed_as_changes_of_the_base(base):
    one = base("gpt2")
    sources = one.sources([("bitfit", {})] * 2, (1.0, 3.0))
    state = combine(one.model(), sources, "linear").adaptation.state()
    first, second = (read_tensors(source.folder / TENSORS) for source in sources)
    own = dict(one.model().named_parameters())
    for key, tensor in state.items():
        before = own[key.removeprefix("0/own/")]
        assert torch.allclose(tensor, before + (first[key] - before) + 3 * (second[key] - before), atol=1e-5)


@pytest.mark.parametrize("name", marked(METHODS.names(), share("combined", METHODS.names())))
def test_an_adapter_combined_with_itself_is_itself(base, name):
    architecture = "gpt2" if facts(name).biased else "llama"
    one = base(architecture, needed([name]))
    folder = one.save((name, {}), 1)
    sources = [Source("one", folder, 0.25), Source("other", folder, 0.75)]
    expected = logits(one.adapted(folder))
    model = one.model()
    combine(model, sources, "average")
    assert close(logits(model), expected)
    model = one.model()
    try:
        combine(model, sources, "concatenate")
    except PeftkitError as error:
        refused = str(error)
    else:
        assert close(logits(model), expected, terms=1024)
        return
    assert "does not add a low-rank pair" in refused or "trains the model's own" in refused
    assert "_peftkit" not in model.__dict__


def test_the_low_rank_methods_can_be_concatenated(base):
    one = base("llama")
    names = ("lora", "lora-fa", "lora-plus", "lora-dropout", "moslora", "sora", "dylora")
    sources = one.sources([(name, {"rank": 2}) for name in names], range(1, 8))
    save_adapter(combine(one.model(), sources, "concatenate").adaptation, one.folder / "sum", {"name": "tiny"})
    hold_equal(changes(one, one.folder / "sum"), summed(one, sources))


@pytest.mark.parametrize("how", WAYS)
def test_what_is_combined_is_saved_and_loaded(base, how):
    one = base("gpt2")
    sources = one.sources([LOW_RANK[0]] * 2, (0.5, 0.5))
    model = one.model()
    save_adapter(combine(model, sources, how).adaptation, one.folder / "sum", {"name": "tiny"}, origin={"how": how})
    assert json.loads((one.folder / "sum" / DESCRIPTION).read_text())["combined"] == {"how": how}
    assert torch.equal(logits(one.adapted(one.folder / "sum")), logits(model))


def rewritten(source: Source, **base: Any) -> Source:
    path = source.folder / DESCRIPTION
    description = json.loads(path.read_text())
    description["base"] |= base
    path.write_text(json.dumps(description))
    return source


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "other"}, "run 1 and run 2 stand on different base models"),
        ({"quantization": {"format": "nf4", "options": {}, "modules": {}}}, "stored as none and nf4"),
    ],
)
def test_adapters_of_other_bases_are_refused(base, changed, message):
    one = base("llama")
    first, second = one.sources([LOW_RANK[0]] * 2, (1.0, 1.0))
    with pytest.raises(PeftkitError, match=message):
        combine(one.model(), [first, rewritten(second, **changed)], "concatenate")


@pytest.mark.parametrize(
    ("choices", "weights", "how", "message"),
    [
        (LOW_RANK[:1], (1.0,), "linear", "at least two"),
        (LOW_RANK[:2], (1.0, 1.0), "linear", "lora: alpha is 5.0 in run 1 and 16.0 in run 2"),
        (LOW_RANK[1:], (1.0, 1.0), "average", "run 1 is lora and run 2 is moslora"),
        (LOW_RANK[:1] * 2, (1.0, -1.0), "average", "add up to 0"),
        (LOW_RANK[:1] * 2, (1.0, float("nan")), "linear", "nan for run 2"),
        (LOW_RANK[:1] * 2, (1.0, 1.0), "concatanate", "Did you mean 'concatenate'"),
        ([("prompt-tuning", {})] * 2, (1.0, 1.0), "concatenate", r"run 1 \(prompt-tuning\) does not add"),
        ([("dora", {})] * 2, (1.0, 1.0), "svd", r"run 1 \(dora\) does not add"),
        ([("layernorm-tuning", {})] * 2, (1.0, 1.0), "svd", "trains the model's own"),
    ],
)
def test_what_means_nothing_is_refused(base, choices, weights, how, message):
    one = base("llama")
    model = one.model()
    with pytest.raises(PeftkitError, match=message):
        combine(model, one.sources(choices, weights), how)
    assert "_peftkit" not in model.__dict__


@pytest.mark.parametrize(
    ("how", "rank", "message"), [("linear", 4, "'linear' keeps all"), ("svd", 0, "--rank: found 0")]
)
def test_a_rank_goes_with_svd(base, how, rank, message):
    one = base("llama")
    with pytest.raises(PeftkitError, match=message):
        combine(one.model(), one.sources(LOW_RANK[:1] * 2, (1.0, 1.0)), how, rank)


@pytest.mark.parametrize("init", ["pissa", "loftq"])
def test_starts_that_changed_what_was_packed_are_refused(base, init):
    one = base("llama", small("nf4"))
    with pytest.raises(PeftkitError, match="was taken out of its weight before that was packed"):
        combine(one.model(), one.sources([("lora", {"init": init})] * 2, (1.0, 1.0)), "concatenate")


@pytest.mark.parametrize("how", WAYS)
def test_nan_is_refused_with_its_file(base, how):
    one = base("llama")
    first, second = one.sources(LOW_RANK[:1] * 2, (1.0, 1.0))
    tensors = read_tensors(second.folder / TENSORS)
    key = next(iter(tensors))
    tensors[key].view(-1)[0] = float("nan")
    write_tensors(second.folder / TENSORS, tensors)
    with pytest.raises(PeftkitError, match=f"{second.folder.name}.*holds NaN"):
        combine(one.model(), [first, second], how)


def test_frozen_tensors_have_to_be_equal(base):
    one = base("llama")
    first, second = one.sources([("lora-fa", {})] * 2, (1.0, 1.0))
    combine(one.model(), [first, second], "linear")
    tensors = read_tensors(second.folder / TENSORS)
    key = next(key for key in tensors if key.endswith("/A"))
    tensors[key] += 1
    write_tensors(second.folder / TENSORS, tensors)
    with pytest.raises(PeftkitError, match="is frozen and has different values"):
        combine(one.model(), [first, second], "linear")


def test_tensors_of_other_shapes_are_refused(base):
    one = base("llama")
    first, second = one.sources([("sora", {})] * 2, (1.0, 1.0))
    tensors = read_tensors(second.folder / TENSORS)
    site = next(iter(tensors)).rpartition("/")[0]
    tensors |= {f"{site}/A": tensors[f"{site}/A"][:3].clone(), f"{site}/g": tensors[f"{site}/g"][:3].clone()}
    tensors[f"{site}/B"] = tensors[f"{site}/B"][:, :3].clone()
    write_tensors(second.folder / TENSORS, tensors)
    with pytest.raises(PeftkitError, match=r"of run 1 and run 2 has the shapes \[8"):
        combine(one.model(), [first, second], "average")
    combine(one.model(), [first, second], "concatenate")
