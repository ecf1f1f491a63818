"""How many numbers each paper's method trains and saves, in closed form: what the core derives is held against it.

A method without an entry is held to what its attached adapters say alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from peftkit.layers.kronecker import side
from peftkit.layers.sparse import entries
from peftkit.layout import Layout, Site, own_parameters
from peftkit.method import Method
from peftkit.methods.inits import INITS, Factorisation, Measured
from peftkit.methods.oft import block_at
from peftkit.ports.stored import groups

Form = Callable[[Any, Layout], int]


def saved_pairs(init: str) -> int:
    """Return how many pairs of the size of A and B are saved beside them."""
    choice = INITS[init]
    if isinstance(choice, Measured):
        return int(choice.split) + int(choice.answers)
    return (2 if choice.answers else 1) if isinstance(choice, Factorisation) else 0


def selected(method: Method, layout: Layout) -> int:
    """Return the number of the model's own parameters that are chosen."""
    return sum(p.numel() for name, p in own_parameters(layout.model) if method.select(layout, name, p))


def pairs(m: Any, layout: Layout) -> int:
    """Return the size of the pairs A [rank, in], B [out, rank]."""
    return sum(m.rank_at(site) * (site.inputs + site.outputs) for site in m.sites(layout))


def ranks(m: Any, layout: Layout) -> int:
    """Return the sum of the ranks of all sites."""
    return sum(m.rank_at(site) for site in m.sites(layout))


def lora(m: Any, layout: Layout) -> int:
    return pairs(m, layout) + selected(m, layout)


def lora_stored(m: Any, layout: Layout) -> int:
    return lora(m, layout) + pairs(m, layout) * saved_pairs(m.init)


def pooled(m: Any, layout: Layout) -> int:
    own = selected(m, layout)
    return own + sum(m.rank_at(site) * (groups(site) + site.outputs) for site in m.sites(layout))


def bottlenecks(m: Any, layout: Layout) -> int:
    adapters = sum(2 * m.bottleneck * s.outputs + m.bottleneck + s.outputs for s in m.sites(layout))
    return adapters + selected(m, layout)


def compacter(m: Any, layout: Layout) -> int:
    adapters = sum(2 * (s.outputs + m.bottleneck) + m.bottleneck + s.outputs for s in m.sites(layout))
    return m.division**3 + adapters


def adalora_stored(m: Any, layout: Layout) -> int:
    """Return the size of `rank` triplets a site on average, where the largest sites keep all that they start with."""
    sites = m.sites(layout)
    most = sorted([s.inputs + s.outputs + 1 for s in sites for _ in range(min(m.start, s.inputs, s.outputs))])
    return sum(most[-m.rank * len(sites) :])


def krona(m: Any, layout: Layout) -> int:
    sides = [(m.side(s.outputs), m.side(s.inputs), s) for s in m.sites(layout)]
    return sum(a1 * a2 + (site.outputs // a1) * (site.inputs // a2) for a1, a2, site in sides)


def dept(m: Any, layout: Layout) -> int:
    width = layout.embedding().outputs
    return m.length * width + m.rank_for(width) * (m.positions + width)


def p_tuning(m: Any, layout: Layout) -> int:
    width, k = layout.embedding().outputs, m.hidden
    encoders = {
        "none": 0,
        "mlp": (width + 1) * k + (k + 1) * k + (k + 1) * width,
        "lstm": 8 * k * (width + k + 2) + 8 * k * (3 * k + 2) + (2 * k + 1) * 2 * k + (2 * k + 1) * width,
    }
    return m.length * width + encoders[m.encoder]


def prefix(m: Any, layout: Layout) -> int:
    return m.length * sum(site.parts["k"].outputs + site.parts["v"].outputs for site in m.sites(layout))


def prefix_tuning(m: Any, layout: Layout) -> int:
    if m.projection is None:
        return prefix(m, layout)
    outputs = sum(site.parts["k"].outputs + site.parts["v"].outputs for site in m.sites(layout))
    inner = m.length * layout.width + (layout.width + 1) * m.projection
    return inner + (m.projection + 1) * outputs


def gates(m: Any, layout: Layout) -> int:
    """Return the size of the gates of a part of UniPELT."""
    return len(m.sites(layout)) * (layout.width + 1)


def head_bottlenecks(m: Any, layout: Layout) -> int:
    """Return the size of a bottleneck with the whole width as input and one head as output, for each head."""
    heads = layout.config.num_attention_heads
    outer = ((site.inputs + 1, site.parts["o"].inputs // heads) for site in m.sites(layout))
    return sum(heads * (m.bottleneck * inputs + (m.bottleneck + 1) * size) for inputs, size in outer)


def unipelt(m: Any, layout: Layout) -> int:
    low_rank, prefixes, adapters = m.parts()
    sizes = lora(low_rank, layout) + prefix_tuning(prefixes, layout) + bottlenecks(adapters, layout)
    return sizes + sum(gates(part, layout) for part in m.parts())


def unipelt_stored(m: Any, layout: Layout) -> int:
    low_rank, prefixes, adapters = m.parts()
    sizes = lora(low_rank, layout) + prefix(prefixes, layout) + bottlenecks(adapters, layout)
    return sizes + sum(gates(part, layout) for part in m.parts())


def mam(m: Any, layout: Layout) -> int:
    return prefix_tuning(m.parts()[0], layout) + bottlenecks(m.parts()[1], layout)


def mam_stored(m: Any, layout: Layout) -> int:
    return prefix(m.parts()[0], layout) + bottlenecks(m.parts()[1], layout)


def longlora(m: Any, layout: Layout) -> int:
    """The pairs, the rows of the embedding, and the vectors of the norms."""
    norms = sum(p.numel() for path in layout.norms() for p in layout.modules[path].parameters())
    return pairs(m.parts()[0], layout) + layout.embedding().inputs * layout.width + norms


def llama_adapter(m: Any, layout: Layout) -> int:
    factors = 1 if m.variant == "paper" else layout.config.num_attention_heads
    return len(m.sites(layout)) * (m.length * layout.width + factors)


def vera(m: Any, layout: Layout) -> int:
    return sum(site.outputs + m.rank for site in m.sites(layout))


def vera_stored(m: Any, layout: Layout) -> int:
    sides = map(max, zip(*((site.inputs, site.outputs) for site in m.sites(layout)), strict=True))
    return vera(m, layout) + (m.rank * sum(sides) if m.save_projection else 0)


def triplets(m: Any, layout: Layout) -> int:
    return sum(min(m.start, s.inputs, s.outputs) * (s.inputs + s.outputs + 1) for s in m.sites(layout))


def frozen(m: Any, layout: Layout) -> int:
    """Return the size of the frozen matrices A."""
    return sum(m.rank_at(site) * site.inputs for site in m.sites(layout))


def aprompt(m: Any, layout: Layout) -> int:
    sites = layout.attention()
    asked = sum(min(m.queries, m.length) * site.parts["q"].outputs for site in sites[:-1])
    seen = sum(m.keys * (site.heads.keys + site.heads.values) for site in sites)
    return m.length * layout.embedding().outputs + asked + seen


def idpg(m: Any, layout: Layout) -> int:
    whole, layers = m.length * layout.width, len(layout.blocks) if m.depth == "every" else 1
    each = m.division**3 + whole * m.bottleneck // m.division + whole
    return (layout.width + 1) * m.bottleneck + layers * each


def infoprompt(m: Any, layout: Layout) -> int:
    *_, critics = m.parts()
    size = critics.row_size(layout) * layout.width
    return TRAINED[m.prompt.name](m.prompt, layout) + size * ((m.beta > 0) + (m.gamma > 0))


def late(m: Any, layout: Layout) -> int:
    made = layout.width * (1 if m.generator == "pooling" else m.length)
    return (layout.width + 1) * m.bottleneck + (m.bottleneck + 1) * made


def propagated(m: Any, layout: Layout) -> int:
    rows, keys = m.halves
    inside = keys * sum(site.heads.keys + site.heads.values for site in layout.attention())
    return len(layout.blocks) * rows * layout.width + inside


def outputs(m: Any, layout: Layout) -> int:
    return sum(site.outputs for site in m.sites(layout))


def kept(m: Any, layout: Layout) -> int:
    return sum(entries(site, m.density) for site in m.sites(layout))


def scaled(m: Any, layout: Layout) -> int:
    return sum(site.inputs if m.build(site).before else site.outputs for site in m.sites(layout))


def biased(site: Site) -> bool:
    return getattr(site.module, "bias", None) is not None


def gated(m: Any, layout: Layout) -> int:
    return sum(2 * site.outputs * site.inputs + m.structured for site in m.sites(layout))


def shifted(m: Any, layout: Layout) -> int:
    return sum(site.outputs * (2 if m.shift == "always" or biased(site) else 1) for site in m.sites(layout))


def stored_scales(m: Any, layout: Layout) -> int:
    return sum(site.outputs * groups(site) for site in m.sites(layout))


def head(m: Any, layout: Layout) -> int:
    return sum(s.outputs * (s.inputs + biased(s)) for s in m.sites(layout))


def factors(m: Any, layout: Layout) -> int:
    """Return the size of the factors of Kronecker products, each whole or a product of rank `rank`."""
    total = 0
    for site in m.sites(layout):
        a1, a2 = side(site.outputs, m.factor), side(site.inputs, m.factor)
        for sides, may_split in (((a1, a2), m.decompose_both), ((site.outputs // a1, site.inputs // a2), True)):
            splits = may_split and m.rank < max(sides) / 2
            total += m.rank * sum(sides) if splits else sides[0] * sides[1]
    return total


def blocks_of_pairs(m: Any, layout: Layout) -> int:
    return sum((m.rank_at(site) + m.hybrid) * (site.inputs + site.outputs) for site in m.sites(layout))


def shards(m: Any, layout: Layout) -> int:
    width = {"mini": lambda site: m.mini}.get(m.variant, lambda site: site.outputs)
    return sum(m.rank_at(site) * width(site) for site in m.sites(layout))


def triangles(m: Any, layout: Layout) -> int:
    """Return the size of the upper triangles in blocks of the inputs."""
    blocks = {site: block_at(m.name, m.block, site) for site in m.sites(layout)}
    return sum(site.inputs * (block - 1) // 2 for site, block in blocks.items())


def oft(m: Any, layout: Layout) -> int:
    if not m.block_share:
        return triangles(m, layout)
    blocks = [block_at(m.name, m.block, site) for site in m.sites(layout)]
    return sum(block * (block - 1) // 2 for block in blocks)


def coefficients(m: Any, layout: Layout) -> int:
    return sum(min(m.count, site.outputs * site.inputs) for site in m.sites(layout))


def circulants(m: Any, layout: Layout) -> int:
    sites = m.sites(layout)
    return sum(s.outputs * s.inputs // (m.block or math.gcd(s.outputs, s.inputs)) for s in sites)


def bases(m: Any, layout: Layout) -> int:
    """Return the size of the weights of random bases."""
    sides = [min(site.inputs, site.outputs) for site in m.sites(layout)]
    return sum(math.ceil(smaller / m.rank) * (m.rank + smaller) for smaller in sides)


def bases_stored(m: Any, layout: Layout) -> int:
    if not m.save_projection:
        return bases(m, layout)
    smaller, larger = sorted(map(max, zip(*((s.inputs, s.outputs) for s in m.sites(layout)), strict=True)))
    return bases(m, layout) + m.rank * (smaller + larger * math.ceil(smaller / m.rank))


def logits(m: Any, layout: Layout) -> int:
    """Return the size of a bank and of the logits over it."""
    pieces = (m.rank_at(s) * (-(-s.inputs // m.length) - (-s.outputs // m.length)) for s in m.sites(layout))
    return m.vectors * (m.length + sum(pieces))


def intrinsic(m: Any, layout: Layout) -> int:
    layers = {site.layer for site in m.sites(layout)}
    return m.dimension + (len(layers) if m.scales else 0)


def whole(m: Any, layout: Layout) -> int:
    return sum(site.outputs * site.inputs for site in m.sites(layout))


def gated_biases(m: Any, layout: Layout) -> int:
    sites = m.sites(layout)
    return sum(2 * site.outputs if m.by_element else site.outputs + 1 for site in sites)


TRAINED: dict[str, Form] = {
    "adalora": triplets,
    "adaptive-prefix-tuning": lambda m, layout: (
        prefix(m, layout) + sum(m.length * site.inputs + 1 for site in m.sites(layout))
    ),
    "alphatuning": stored_scales,
    "aprompt": aprompt,
    "bitfit": selected,
    "boft": lambda m, layout: m.factors * triangles(m, layout) + outputs(m, layout),
    "c3a": circulants,
    "capaboost": lora,
    "child-tuning-d": kept,
    "child-tuning-f": whole,
    "compacter": compacter,
    "delora": lambda m, layout: pairs(m, layout) + len(m.sites(layout)),
    "dept": dept,
    "diff-pruning": gated,
    "diff-pruning-structured": gated,
    "dora": lambda m, layout: lora(m, layout) + outputs(m, layout),
    "dylora": lora,
    "far": whole,
    "fish-dip": whole,
    "fishmask": kept,
    "fourierft": coefficients,
    "full": selected,
    "galore": selected,
    "gralora": blocks_of_pairs,
    "head-tuning": head,
    "hira": pairs,
    "hiwi": lambda m, layout: 2 * sum(m.rank_at(site) * site.outputs for site in m.sites(layout)),
    "hra": lambda m, layout: sum(m.rank_at(site) * site.inputs for site in m.sites(layout)),
    "ia3": scaled,
    "intrinsic-said": intrinsic,
    "kadaptation": lambda m, layout: m.division**3 + sum(m.rank * (s.inputs + s.outputs) for s in m.sites(layout)),
    "krona": krona,
    "krona-b": krona,
    "krona-b-res": lambda m, layout: krona(m, layout) + len(m.sites(layout)),
    "idpg": idpg,
    "infoprompt": infoprompt,
    "late-prompt-tuning": late,
    "layernorm-tuning": selected,
    "llama-adapter": llama_adapter,
    "loha": lambda m, layout: 2 * pairs(m, layout),
    "lokr": factors,
    "lora": lora,
    "longlora": longlora,
    "longqlora": lambda m, layout: lora(m.parts()[0], layout),
    "lora-dropout": lora,
    "lora-fa": lambda m, layout: lora(m, layout) - frozen(m, layout),
    "lora-plus": lora,
    "lt-sft": whole,
    "mam-adapter": mam,
    "miss": shards,
    "moslora": lambda m, layout: lora(m, layout) + sum(m.rank_at(site) ** 2 for site in m.sites(layout)),
    "multihead-parallel-adapter": head_bottlenecks,
    "o-lora": lora,
    "oft": oft,
    "p-tuning": p_tuning,
    "p-tuning-v2": prefix,
    "pafi": kept,
    "parallel-adapter": bottlenecks,
    "peqa": stored_scales,
    "periodic-lora": lora,
    "pfeiffer-adapter": bottlenecks,
    "prefix-propagation": propagated,
    "prefix-tuning": prefix_tuning,
    "prompt-tuning": lambda m, layout: m.length * layout.embedding().outputs,
    "ptp": lambda m, layout: TRAINED[m.prompt.name](m.prompt, layout),
    "qa-lora": pooled,
    "randlora": bases,
    "road": lambda m, layout: m.variant * outputs(m, layout),
    "s-bitfit": gated_biases,
    "s2-attn": lambda m, layout: TRAINED[m.inner.name](m.inner, layout),
    "sam-mask": kept,
    "scaled-parallel-adapter": bottlenecks,
    "sensitivity-spt": kept,
    "serial-adapter": bottlenecks,
    "smop": lambda m, layout: m.prompts * (m.length + 1) * layout.embedding().outputs,
    "sora": lambda m, layout: lora(m, layout) + ranks(m, layout),
    "spot": lambda m, layout: m.length * layout.embedding().outputs,
    "ssf": shifted,
    "u-bitfit": gated_biases,
    "unilora": lambda m, layout: m.length,
    "transferable-prompt-tuning": lambda m, layout: m.length * layout.embedding().outputs,
    "unipelt": unipelt,
    "vblora": logits,
    "vera": vera,
    "waveft": coefficients,
    "xprompt": lambda m, layout: m.length * layout.embedding().outputs,
}
STORED: dict[str, Form] = {
    "adalora": adalora_stored,
    "child-tuning-d": lambda m, layout: 2 * kept(m, layout),
    "diff-pruning-structured": lambda m, layout: 2 * kept(m, layout),
    "diff-pruning": lambda m, layout: 2 * kept(m, layout),
    "dora": lambda m, layout: lora_stored(m, layout) + outputs(m, layout),
    "dylora": lambda m, layout: lora(m, layout) + 1,
    "far": lambda m, layout: m.saved(layout),
    "fish-dip": lambda m, layout: 2 * whole(m, layout),
    "fishmask": lambda m, layout: 2 * kept(m, layout),
    "lora": lora_stored,
    "lora-dropout": lora_stored,
    "lora-fa": lora_stored,
    "lora-plus": lora_stored,
    "lt-sft": lambda m, layout: 2 * kept(m, layout),
    "infoprompt": lambda m, layout: TRAINED[m.prompt.name](m.prompt, layout),
    "mam-adapter": mam_stored,
    "o-lora": lora_stored,
    "p-tuning": lambda m, layout: m.length * layout.embedding().outputs,
    "pafi": lambda m, layout: 2 * kept(m, layout),
    "periodic-lora": lambda m, layout: m.saved(layout),
    "prefix-tuning": prefix,
    "randlora": bases_stored,
    "s-bitfit": lambda m, layout: 2 * outputs(m, layout),
    "sam-mask": lambda m, layout: 2 * kept(m, layout),
    "sensitivity-spt": lambda m, layout: m.saved(layout),
    "u-bitfit": lambda m, layout: 2 * outputs(m, layout),
    "unilora": lambda m, layout: m.length + m.save_projection * (m.length + pairs(m, layout)),
    "unipelt": unipelt_stored,
    "vera": vera_stored,
    "xprompt": lambda m, layout: m.kept_pieces * layout.embedding().outputs // m.pieces + m.kept * m.pieces,
}
"""Where what is saved is not what is trained."""


def hold_counts(method: Method, layout: Layout, trained: int, stored: int) -> None:
    """Assert that derived counts are those of the closed forms, where there are any."""
    if method.name in TRAINED:
        assert trained == TRAINED[method.name](method, layout)
        assert stored == STORED.get(method.name, TRAINED[method.name])(method, layout)
