"""Layers of any kind: parts and roles are what their names say, and every method of linear maps finds its places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from draw import marked
from facts import facts
from torch import Tensor, nn

import zoo
from peftkit.adaptation import attach, check_methods
from peftkit.errors import PeftkitError
from peftkit.layout import Layout, Site
from peftkit.method import METHODS

KINDS = ("deepseek_v3", "falcon", "jamba", "mamba", "opt", "qwen3_next")
"""Latent attention, fused multi-query maps, a hybrid with experts, state spaces, a bare feed-forward part, deltas."""
UNMADE = {
    "cohere_compass_text": "its rotary positions want a layer type that its configuration does not have",
    "dbrx": "its configuration of attention has no rope_theta",
    "gemma4_unified_assistant": "its layers share caches that no layer makes",
    "blt": "its global layers want sizes that its configuration does not state",
}
FAMILIES = [name for name in zoo.families() if name not in UNMADE]
PORTS = ("linear", "hidden", "own parameters")
METHODS_HERE = [name for name, cls in METHODS.items() if cls.port in PORTS and cls.needs is None and name != "full"]
IDS = torch.arange(3, 13)[None]
NOTHING = ("has no bias", "has no norm", "has no feed-forward part")
"""Why a method may be refused as it comes: the model has nothing of its kind."""
PLACE = 4
"""The token at which something is changed."""


def families(held: tuple[str, ...] = KINDS) -> list[Any]:
    return marked(FAMILIES, held)


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@contextmanager
def seen(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module gives, the first of several things."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda m, args, output: outputs.append(output[0] if isinstance(output, tuple | list) else output)
    )
    yield outputs
    handle.remove()


@contextmanager
def noisy(module: nn.Module, place: int, rows: Callable[[Tensor], Tensor] | None = None) -> Iterator[None]:
    """Change the hidden states that a module reads at one token, or, of its outputs, those that `rows` picks."""

    def moved(x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        noise.select(tokens_of(x), place).copy_(torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0)))
        return x + (noise if rows is None else rows(noise))

    def before(_: nn.Module, args: Any, named: Any) -> Any:
        if args:
            return (moved(args[0]), *args[1:]), named
        first = next(iter(named))
        return args, {**named, first: moved(named[first])}

    if rows is None:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(lambda m, args, output: moved(output))
    yield
    handle.remove()


def changed(model: Any, watched: nn.Module, module: nn.Module, place: int, rows: Any = None) -> list[bool]:
    """Say for each token whether what `watched` gives moves with what `module` reads, or gives, at one token."""
    with torch.no_grad(), seen(watched) as outputs:
        logits(model)
        count = len(outputs)
        with noisy(module, place, rows):
            logits(model)
    # A module that several layers share is called for each: the first call has seen no other change.
    one, other = outputs[0], outputs[count]
    difference = (one - other).abs()
    tokens = tokens_of(difference)
    # Beside rounding, which follows from how the tokens of an expert are put together.
    least = 1e-5 * difference.max()
    return [bool(difference.select(tokens, token).max() > least) for token in range(one.shape[tokens])]


def tokens_of(x: Tensor) -> int:
    """Return the dimension of the tokens, which a family or two have in front."""
    return next((i for i in range(x.dim() - 2, -1, -1) if x.shape[i] == IDS.shape[1]), x.dim() - 2)


def first_of_each(sites: list[Site]) -> list[Site]:
    kinds = {(type(site.module), site.role): site for site in reversed(sites)}
    return list(kinds.values())


APART = {
    "cpmant": "attention is given keys beside queries",
    "inkling2_text": "attention is given keys and values apart",
}
"""Families with mixers whose first input are the queries alone."""


@pytest.mark.parametrize("family", families())
def test_mixers_mix_tokens_and_feed_forward_parts_do_not(family):
    model = zoo.build(family)
    layout = Layout(model)
    assert len(layout.blocks) >= 2
    assert {part.layer for part in layout.parts} == set(range(len(layout.blocks)))
    for site in first_of_each(layout.hidden("attention")):
        moved = changed(model, site.module, site.module, PLACE)
        assert moved[PLACE], site
        assert sum(moved) > 1 or family in APART, f"{site} sees each token alone"
    parts = [site for site in layout.hidden("mlp") if site.entry is None] if "mlp" in kinds(layout) else []
    for site in first_of_each(parts):
        moved = changed(model, site.module, site.module, PLACE)
        # This family's feed-forward part reads the token before, too.
        last = PLACE + (family == "rwkv")
        assert moved == [PLACE <= token <= last for token in range(len(moved))], site


def kinds(layout: Layout) -> set[str]:
    return {part.kind for part in layout.parts}


FUSED = ("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "mpt", "openai-gpt")
VARIANTS = {
    "falcon, new": ("falcon", {"new_decoder_architecture": True}),
    "falcon, plain": ("falcon", {"multi_query": False, "new_decoder_architecture": False, "num_kv_heads": 4}),
    "falcon, multi-query": ("falcon", {"multi_query": True, "new_decoder_architecture": False}),
    "falcon, alibi": (
        "falcon",
        {"multi_query": False, "new_decoder_architecture": False, "num_kv_heads": 4, "alibi": True},
    ),
    "bigcode, multi-query": ("gpt_bigcode", {"multi_query": True}),
    "bigcode, plain": ("gpt_bigcode", {"multi_query": False}),
    "codegen, more heads": ("codegen", {"n_head": 8, "rotary_dim": 4}),
    **{name: (name, {}) for name in (*FUSED, "persimmon", "phi3", "jetmoe")},
}


@pytest.mark.parametrize("variant", marked(VARIANTS, [name for name in VARIANTS if "," in name]))
def test_the_rows_of_fused_maps_are_the_queries_keys_and_values(variant):
    """A query is seen by its own token alone, a key by later ones, and a value even where there is one key only."""
    family, changes = VARIANTS[variant]
    model = zoo.build(family, **changes)
    layout = Layout(model)
    (mixer, *_) = layout.hidden("attention")
    parts = layout.inside(mixer)
    count = IDS.shape[1]
    assert all(parts[role].rows is not None for role in "kv")

    def moves(role: str, place: int) -> list[bool]:
        rows = parts[role].rows
        assert rows is not None
        pick = lambda noise: rows.put(torch.zeros_like(noise), rows.take(noise))  # noqa: E731
        return changed(model, mixer.module, parts[role].module, place, pick)

    if "q" in parts:
        assert parts["q"].rows is not None
        assert moves("q", PLACE) == [token == PLACE for token in range(count)]
    for role in "kv":
        assert moves(role, PLACE) == [token >= PLACE for token in range(count)]
    assert moves("v", 0)[0]
    assert not moves("k", 0)[0]


def test_the_rows_of_lightning_attention_follow_its_own_split():
    layout = Layout(zoo.build("minimax"))
    fused = [site for site in layout.linears if site.layer == 1 and site.rows is not None]
    heads = layout.config.num_attention_heads
    size = layout.width // heads
    y = torch.randn(1, 5, 3 * heads * size)
    split = y.reshape(1, 5, heads, 3 * size).split(size, dim=3)
    assert [site.role for site in fused] == ["q", "k", "v"]
    for site, expected in zip(fused, split, strict=True):
        assert site.rows is not None
        assert torch.equal(site.rows.take(y), expected.flatten(-2))


@pytest.mark.parametrize("family", families())
def test_every_linear_map_of_the_layers_is_called(family):
    model = zoo.build(family)
    called: set[int] = set()
    layout = Layout(model)
    sites = layout.resolve("linear")
    for site in sites:
        site.module.register_forward_hook(lambda module, args, output: called.add(id(module)))
    with torch.no_grad():
        # Longer than what some families compress into one key.
        model(input_ids=torch.arange(128)[None] % 90 + 3, use_cache=False)
    assert not [site.id for site in sites if id(site.module) not in called]


@pytest.mark.parametrize("method", ["lora on linear", *METHODS_HERE])
@pytest.mark.parametrize("family", families())
def test_a_method_attaches_runs_and_merges(family, method):
    model = zoo.build(family)
    options = {"targets": "linear"} if method == "lora on linear" else {}
    chosen = METHODS[method.removesuffix(" on linear")].from_options(options)
    refusal = refused(model, chosen)
    if refusal is not None:
        assert any(reason in refusal for reason in NOTHING), refusal
        return
    with torch.no_grad():
        base = logits(model)
        adaptation = attach(model, [chosen])
        moves = getattr(chosen, "variant", None) == "official" or facts(chosen.name).moves_base
        assert moves or (logits(model) - base).abs().max() <= 1e-5
    step(model, adaptation)
    with torch.no_grad():
        adapted = logits(model)
        if not adaptation.unmergeable():
            adaptation.merge_()
            tolerance = 2e-5 * max(1.0, float(adapted.abs().max()))
            assert (logits(model) - adapted).abs().max() <= tolerance
        else:
            with pytest.raises(PeftkitError):
                adaptation.merge_()


def refused(model: Any, method: Any) -> str | None:
    try:
        check_methods(model, [method])
    except PeftkitError as error:
        return str(error)
    return None


def step(model: Any, adaptation: Any) -> None:
    """Move every tensor, and hold that each has a gradient that is finite, and nearly all one that is not zero."""
    generator = torch.Generator().manual_seed(0)
    parameters = dict(adaptation.parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    model.train()
    torch.manual_seed(0)
    ids = torch.arange(128)[None] % 90 + 3 if model.config.model_type == "deepseek_v4" else IDS
    out = model(input_ids=ids, use_cache=False).logits
    loss = nn.functional.cross_entropy(out[0, :-1], ids[0, 1:])
    penalty = adaptation.penalty()
    (loss if penalty is None else loss + penalty).backward()
    model.eval()
    assert torch.isfinite(loss)
    missing = [key for key, parameter in parameters.items() if parameter.grad is None]
    assert not missing, f"{len(missing)} of {len(parameters)} have no gradient: {missing[:3]}"
    zero = [key for key, parameter in parameters.items() if not bool(parameter.grad.abs().max() > 0)]
    # What is dropped at random, and gates of maps that a family hardly uses, may have none once.
    assert len(zero) <= max(2, len(parameters) // 10), zero[:3]


# What is said ---------------------------------------------------------------------------------------------------------


def targets(family: str, method: str, **options: Any) -> list[str]:
    layout = Layout(zoo.build(family))
    chosen = METHODS[method].from_options(options)
    return [
        f"{site.layer}.{site.path.removeprefix(layout.blocks[site.layer or 0] + '.')}" for site in chosen.sites(layout)
    ]


def told(family: str, method: str, **options: Any) -> list[str]:
    return METHODS[method].from_options(options).notices(Layout(zoo.build(family)))


def test_a_default_finds_its_like():
    assert targets("mamba", "lora") == [f"{layer}.mixer.in_proj" for layer in range(4)]
    assert targets("deepseek_v3", "lora")[:1] == ["0.self_attn.q_b_proj"]
    assert targets("deepseek_v3", "lora")[4:5] == ["0.self_attn.kv_b_proj"]
    assert targets("jamba", "lora")[:2] == ["0.mamba.in_proj", "1.self_attn.q_proj"]
    assert targets("jamba", "pfeiffer-adapter")[:2] == ["0.feed_forward", "1.feed_forward.down_proj"]
    assert targets("mamba", "pfeiffer-adapter") == [f"{layer}.mixer" for layer in range(4)]
    assert targets("opt", "parallel-adapter")[:1] == ["0.fc2"]
    assert targets("jamba", "ia3")[:2] == ["0.mamba.in_proj", "1.self_attn.k_proj"]
    assert targets("jetmoe", "lora") == [f"{layer}.self_attention.kv_proj" for layer in range(4)]


def test_what_stands_for_a_default_is_told(caplog):
    assert told("llama", "lora") == told("opt", "serial-adapter") == []
    (line,) = told("jamba", "lora")
    assert line == "lora: 2 of the 4 layers of this jamba model have no q and no v: in stands for them there"
    (line,) = told("mamba", "parallel-adapter")
    assert line == "parallel-adapter: mamba models have no feed-forward parts: the mixers stand for them"
    assert "the targets cover" in told("mixtral", "lora", targets="linear")[-1]
    with caplog.at_level("INFO", logger="peftkit"):
        attach(zoo.build("jamba"), [METHODS["lora"].from_options({})])
    assert [record.getMessage() for record in caplog.records] == told("jamba", "lora")


@pytest.mark.parametrize(
    ("family", "options", "what"),
    [
        ("mamba", {"targets": "q"}, "'q' matches no linear module of this mamba model"),
        ("mixtral", {"targets": ["q", "down"]}, "'down' matches no linear module"),
        ("jamba", {"layers": "9"}, "it has 0 to 3"),
    ],
)
def test_what_a_user_names_has_to_be_there(family, options, what):
    with pytest.raises(PeftkitError, match=what):
        check_methods(zoo.build(family), [METHODS["lora"].from_options(options)])


def test_a_rank_is_cut_at_small_maps_that_a_group_names_and_refused_where_they_are_named():
    layout = Layout(zoo.build("qwen3_5_text"))
    group, named = ({"targets": one, "rank": 8} for one in ("attention", "in_proj_a"))
    ranks = {
        site.path.rpartition(".")[2]: METHODS["lora"].from_options(group).build(site).A.shape[0]  # type: ignore[union-attr]
        for site in METHODS["lora"].from_options(group).sites(layout)
    }
    assert (ranks["in_proj_a"], ranks["in_proj_qkv"]) == (4, 8)
    with pytest.raises(PeftkitError, match=r"rank 8 is larger than .*in_proj_a \[4, 32\]"):
        METHODS["lora"].from_options(named).sites(layout)


@pytest.mark.parametrize("family", ["opt", "ctrl"])
def test_an_adapter_beside_a_part_without_a_module_of_its_own_reads_what_the_part_does(family):
    model = zoo.build(family)
    adaptation = attach(model, [METHODS["parallel-adapter"].from_options({"activation": "tanh"})])
    (adapter, *_) = adaptation.adapters()
    with torch.no_grad():
        for _, parameter in adaptation.parameters():
            parameter.normal_(std=0.1)
    first = adapter.site.entry or adapter.site.module
    reads: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, args: reads.append(args[0]))
    with torch.no_grad(), seen(adapter.site.module) as outputs:
        adapted = logits(model)
        with adaptation.disabled():
            logits(model)
    handle.remove()
    added = outputs[0] - outputs[len(outputs) // 2]
    expected = adapter.U @ torch.tanh(reads[0] @ adapter.D.T + adapter.b)[..., None]
    assert torch.allclose(added, expected[..., 0] + adapter.c, atol=1e-5)
    adaptation.remove()
    assert not any("_keep_input" in repr(hook) for hook in first._forward_pre_hooks.values())
    assert not torch.allclose(adapted, logits(model))


def test_what_a_part_gives_beside_its_output_is_kept():
    class Pair(nn.Module):
        def __init__(self, several: Callable[..., Any]):
            super().__init__()
            self.several, self.map = several, nn.Linear(4, 4)

        def forward(self, hidden_states: Tensor) -> Any:
            return self.several(self.map(hidden_states))

    from peftkit.ports.context import context_of
    from peftkit.ports.seat import seat

    x = torch.randn(1, 3, 4)
    for several in (lambda y: (y,), lambda y: (y, 2), lambda y: [y, 2], lambda y: y):
        module = Pair(several)
        before = module(hidden_states=x)
        adapter = METHODS["parallel-adapter"].from_options({"bottleneck": 2}).build(Site("m", module, 4, 4, "mlp", 0))
        seat(adapter, "default", context_of(module))
        context_of(module).activate(["default"])
        after = module(hidden_states=x)
        if isinstance(before, Tensor):
            assert torch.equal(before, after)
        else:
            assert type(after) is type(before)
            assert len(after) == len(before)
            assert torch.equal(before[0], after[0])
            assert list(before[1:]) == list(after[1:])
