"""How many numbers each paper's method trains and saves, in closed form: what the core derives is held against it.

A method without an entry is held to what its attached adapters say alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftkit.layers.sparse import entries
from peftkit.layout import Layout, Site, own_parameters
from peftkit.method import Method
from peftkit.methods.inits import INITS, Factorisation
from peftkit.ports.stored import groups

Form = Callable[[Any, Layout], int]


def saved_pairs(init: str) -> int:
    """Return how many pairs of the size of A and B are saved beside them."""
    choice = INITS[init]
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


TRAINED: dict[str, Form] = {
    "adalora": triplets,
    "alphatuning": stored_scales,
    "bitfit": selected,
    "compacter": compacter,
    "diff-pruning": gated,
    "dora": lambda m, layout: lora(m, layout) + outputs(m, layout),
    "dylora": lora,
    "fishmask": kept,
    "full": selected,
    "galore": selected,
    "head-tuning": head,
    "ia3": scaled,
    "krona": krona,
    "layernorm-tuning": selected,
    "llama-adapter": llama_adapter,
    "lora": lora,
    "lora-dropout": lora,
    "lora-fa": lambda m, layout: lora(m, layout) - frozen(m, layout),
    "lora-plus": lora,
    "mam-adapter": mam,
    "moslora": lambda m, layout: lora(m, layout) + sum(m.rank_at(site) ** 2 for site in m.sites(layout)),
    "p-tuning": p_tuning,
    "p-tuning-v2": prefix,
    "parallel-adapter": bottlenecks,
    "peqa": stored_scales,
    "pfeiffer-adapter": bottlenecks,
    "prefix-tuning": prefix_tuning,
    "prompt-tuning": lambda m, layout: m.length * layout.embedding().outputs,
    "qa-lora": pooled,
    "scaled-parallel-adapter": bottlenecks,
    "serial-adapter": bottlenecks,
    "sora": lambda m, layout: lora(m, layout) + ranks(m, layout),
    "ssf": shifted,
    "unipelt": unipelt,
    "vera": vera,
}
STORED: dict[str, Form] = {
    "adalora": adalora_stored,
    "diff-pruning": lambda m, layout: 2 * kept(m, layout),
    "dora": lambda m, layout: lora_stored(m, layout) + outputs(m, layout),
    "dylora": lambda m, layout: lora(m, layout) + 1,
    "fishmask": lambda m, layout: 2 * kept(m, layout),
    "lora": lora_stored,
    "lora-dropout": lora_stored,
    "lora-fa": lora_stored,
    "lora-plus": lora_stored,
    "mam-adapter": mam_stored,
    "p-tuning": lambda m, layout: m.length * layout.embedding().outputs,
    "prefix-tuning": prefix,
    "unipelt": unipelt_stored,
    "vera": vera_stored,
}
"""Where what is saved is not what is trained."""


def hold_counts(method: Method, layout: Layout, trained: int, stored: int) -> None:
    """Assert that derived counts are those of the closed forms, where there are any."""
    if method.name in TRAINED:
        assert trained == TRAINED[method.name](method, layout)
        assert stored == STORED.get(method.name, TRAINED[method.name])(method, layout)
