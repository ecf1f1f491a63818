"""What only tests know of a method: how it shows that it learns, further options to hold it with, and its promises.

A method without an entry is held with its defaults to what most methods promise; a line here says what it is else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Learns:
    """A method learns: its loss falls below `loss` within `steps` at `learning_rate`.

    Four sequences of 12 tokens are learnt by heart by a random decoder of width 32; its loss is above 4.5 before.
    """

    loss: float = 4.4
    steps: int = 60
    learning_rate: float = 3e-2


@dataclass(frozen=True)
class Facts:
    """What the laws have to know of one method."""

    learns: Learns = Learns()
    trials: tuple[Mapping[str, Any], ...] = ()
    """Further choices of options for which the laws of every method are held."""
    moves_base: bool = False
    """Whether its published start changes the logits."""
    random_in_training: bool = False
    """Whether its forward pass draws at random in training, beside dropout: two splits of a batch then differ."""
    stored_at_most: bool = False
    """Whether the number of saved values is a bound, because what training finds decides it."""
    padded: bool = False
    """Whether its adapters depend on the example, so that rows are never flat tokens."""
    alone: bool = False
    """Whether few steps beside others say nothing of it: it has stages of its own, or acts in training alone."""
    biased: bool = False
    """Whether it finds nothing where a model has no biases, as the tiny Llama."""
    bounded_rank: bool = True
    """Whether a rank above a layer's size is refused, where the method has one."""


FACTS = {
    "pafi": Facts(
        learns=Learns(loss=4.2, learning_rate=0.1), trials=({"density": 0.1, "targets": ["attention", "head"]},)
    ),
    "child-tuning-d": Facts(learns=Learns(loss=3.0), trials=({"density": 0.1, "targets": ["attention", "head"]},)),
    "child-tuning-f": Facts(
        learns=Learns(loss=3.5, learning_rate=0.01), trials=({"keep": 0.6, "targets": ["attention", "head"]},)
    ),
    "sam-mask": Facts(
        learns=Learns(loss=4.0, learning_rate=0.1),
        trials=({"density": 0.1, "targets": ["attention", "head"], "variant": "paper"},),
    ),
    "fish-dip": Facts(
        learns=Learns(loss=3.5),
        trials=({"density": 0.1, "targets": ["attention", "head"], "samples": 8, "longest": 16, "interval": 10},),
        stored_at_most=True,
    ),
    "lt-sft": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.1),
        trials=({"density": 0.1, "targets": ["attention", "head"], "first": 0.3, "l1": 0.01},),
    ),
    "far": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.05),
        trials=({"density": 0.3, "targets": ["up", "down"], "layers": "1"},),
    ),
    "sensitivity-spt": Facts(
        learns=Learns(loss=4.2, learning_rate=0.1),
        trials=({"density": 0.1, "targets": ["attention", "head"], "rank": 2},),
        stored_at_most=True,
    ),
    "diff-pruning-structured": Facts(
        learns=Learns(loss=4.2, steps=200, learning_rate=8e-2),
        trials=({"targets": "attention", "density": 0.1},),
        random_in_training=True,
    ),
    "s-bitfit": Facts(
        biased=True,
        learns=Learns(loss=4.2, steps=100, learning_rate=0.1),
        trials=({"targets": ["up", "down"], "density": 0.3},),
        stored_at_most=True,
    ),
    "u-bitfit": Facts(
        biased=True,
        learns=Learns(loss=4.2, steps=100, learning_rate=0.1),
        trials=({"targets": ["up", "down"], "density": 0.3},),
        stored_at_most=True,
    ),
    "hiwi": Facts(
        learns=Learns(learning_rate=0.05),
        trials=(
            {"targets": ["linear", "head"], "rank": 4, "activation": "gelu", "scale": 2.0},
            {"targets": "linear", "of": "biases", "rank": 4},
        ),
    ),
    "capaboost": Facts(
        learns=Learns(loss=3.0, learning_rate=0.05),
        trials=({"targets": ["linear", "head"], "rank": 4, "copies": 3, "density": 0.3, "dropout": 0.1},),
    ),
    "periodic-lora": Facts(
        learns=Learns(loss=3.5, learning_rate=0.05),
        trials=({"targets": "linear", "rank": 4, "periods": 3, "forget": 0.9},),
        stored_at_most=True,
    ),
    "o-lora": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2),
        trials=({"targets": "linear", "rank": 4, "variant": "paper", "shrinkage": 1e-4},),
    ),
    "surm": Facts(
        trials=(
            {"targets": ["linear", "head"], "structure": "toeplitz"},
            {"targets": "linear", "structure": "symmetric-toeplitz"},
            {"targets": "linear", "structure": "kronecker"},
        )
    ),
    "randlora": Facts(
        learns=Learns(learning_rate=0.01),
        trials=(
            {
                "targets": ["linear", "head"],
                "rank": 6,
                "alpha": 20,
                "save_projection": True,
                "projection_seed": 7,
                "dropout": 0.1,
            },
        ),
        bounded_rank=False,
    ),
    "vblora": Facts(
        learns=Learns(learning_rate=0.05),
        trials=({"targets": ["linear", "head"], "rank": 2, "vectors": 12, "length": 24, "top": 3, "dropout": 0.1},),
        moves_base=True,
    ),
    "unilora": Facts(
        learns=Learns(learning_rate=0.1),
        trials=({"targets": ["linear", "head"], "rank": 2, "length": 300, "save_projection": True, "dropout": 0.1},),
        moves_base=True,
    ),
    "intrinsic-said": Facts(
        learns=Learns(learning_rate=0.1),
        trials=({"targets": ["attention", "head"], "dimension": 200, "scales": False, "projection_seed": 3},),
    ),
    "hira": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.2),
        trials=({"targets": ["linear", "head"], "rank": 4, "dropout": 0.1},),
    ),
    "loha": Facts(trials=({"targets": ["linear", "head"], "rank": 3, "alpha": 6},)),
    "lokr": Facts(
        trials=({"targets": ["linear", "head"], "rank": 1, "alpha": 2, "factor": 4, "decompose_both": True},),
        bounded_rank=False,
    ),
    "gralora": Facts(trials=({"targets": "linear", "rank": 4, "blocks": 4, "hybrid": 2, "dropout": 0.1},)),
    "delora": Facts(trials=({"targets": ["linear", "head"], "rank": 4, "strength": 4.0, "dropout": 0.1},)),
    "miss": Facts(
        trials=(
            {"targets": "linear", "rank": 5},
            {"targets": "linear", "rank": 6, "variant": "mini", "mini": 8},
            {"targets": "linear", "rank": 4, "variant": "bat"},
        )
    ),
    "road": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.2),
        trials=(
            {"targets": "linear", "variant": 2, "group": 4},
            {"targets": ["q", "v"], "variant": 4},
        ),
    ),
    "hra": Facts(trials=({"targets": "linear", "rank": 4, "orthogonality": 0.01},)),
    "oft": Facts(trials=({"targets": "linear", "block": 8, "terms": 5, "block_share": True, "constraint": 1.0},)),
    "boft": Facts(trials=({"targets": "linear", "factors": 3, "block": 4, "terms": 5},)),
    "fourierft": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.2),
        trials=({"targets": ["linear", "head"], "count": 100, "seed": 3},),
    ),
    "waveft": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.2),
        trials=(
            {"targets": ["linear", "head"], "count": 100, "seed": 3},
            {"wavelet": "none", "count": 200},
        ),
    ),
    "c3a": Facts(learns=Learns(loss=4.2, steps=100, learning_rate=0.2), trials=({"targets": "linear", "block": 4},)),
    "adalora": Facts(
        learns=Learns(loss=3.0, learning_rate=0.05),
        trials=(
            {"rank": 3, "initial_rank": 5, "targets": "linear", "interval": 3, "warmup": 10, "orthogonality": 0.1},
        ),
        stored_at_most=True,
    ),
    "adamix": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.02),
        trials=(
            {"of": {"lora": {"rank": 4, "targets": "linear"}}, "copies": 2, "shared": "none"},
            {"of": {"parallel-adapter": {"bottleneck": 12}}, "copies": 1},
        ),
        random_in_training=True,
    ),
    "adapterdrop": Facts(
        learns=Learns(loss=3.8, learning_rate=0.02),
        trials=(
            {"of": {"lora": {"rank": 4}}, "depth": "fixed", "drop": 1},
            {"of": {"llama-adapter": {"length": 4}}, "most": 1},
        ),
        random_in_training=True,
    ),
    "adaptive-lr-reg": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2),
        trials=(
            {"of": {"adalora": {"rank": 3, "interval": 3}}, "band": [0.001, 0.05], "reg": ["orthogonal", "l2sp"]},
            {"of": {"pfeiffer-adapter": {"bottleneck": 12}}, "layer_decay": 0.9, "reg": [{"dropout": 0.2}]},
        ),
        stored_at_most=True,
    ),
    "adaptive-prefix-tuning": Facts(
        learns=Learns(loss=3.5, steps=100, learning_rate=0.12),
        trials=({"length": 6, "layers": "1", "deviation": 1.0},),
        moves_base=True,
        padded=True,
    ),
    "alphatuning": Facts(
        learns=Learns(loss=3.3, steps=80, learning_rate=0.01), trials=({"targets": ["q", "v", "down"]},)
    ),
    "aprompt": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.1),
        trials=({"length": 6, "queries": 2, "keys": 3, "init": "random"},),
        moves_base=True,
    ),
    "bi-adapter": Facts(
        learns=Learns(loss=3.8, learning_rate=0.02),
        trials=({"bottleneck": 12, "bits": 3, "beside": "attention", "activation": "gelu", "scale": 2.0},),
        moves_base=True,
    ),
    "bitfit": Facts(
        biased=True, learns=Learns(loss=3.3, steps=80, learning_rate=0.05), trials=({"targets": ["up", "down"]},)
    ),
    "ciat": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=(
            {"keys": ["de", "fr", "es"], "bottleneck": 12, "activation": "gelu"},
            {"embedding": False, "bottleneck": 12, "layers": "1"},
        ),
    ),
    "compacter": Facts(
        learns=Learns(loss=4.0, steps=100, learning_rate=0.05),
        trials=({"bottleneck": 4, "division": 2, "activation": "relu", "targets": "down", "layers": "1"},),
    ),
    "dept": Facts(
        learns=Learns(loss=3.8, steps=80, learning_rate=0.1),
        trials=(
            {"length": 5, "rank": 2, "positions": 40, "ratio": 1.0, "init": "random"},
            {"length": 4, "budget": 10, "positions": 40, "ratio": 0.5},
        ),
        moves_base=True,
        bounded_rank=False,
    ),
    "diff-pruning": Facts(
        learns=Learns(loss=4.2, steps=200, learning_rate=8e-2),
        trials=({"structured": True, "targets": "attention", "density": 0.1},),
        random_in_training=True,
    ),
    "dora": Facts(
        learns=Learns(loss=3.0),
        trials=(
            {"targets": ["linear", "head"], "rank": 4, "detach_norm": False, "dropout": 0.1},
            {"targets": "linear", "rank": 4, "init": "pissa"},
        ),
    ),
    "dylora": Facts(
        learns=Learns(loss=4.5, steps=100, learning_rate=0.05),
        trials=({"update": "last", "min_rank": 4, "use_rank": 6, "targets": ["linear"], "rank_pattern": {"mlp": 4}},),
        random_in_training=True,
    ),
    "fishmask": Facts(
        learns=Learns(loss=4.0, learning_rate=0.1), trials=({"density": 0.1, "targets": ["attention", "head"]},)
    ),
    "full": Facts(learns=Learns(loss=1.0, learning_rate=0.01), trials=({"targets": "*.1.*"},)),
    "galore": Facts(
        learns=Learns(loss=1.0),
        trials=({"rank": 4, "interval": 2, "scale": 1.0, "targets": ["attention", "head"], "rest": "adamw"},),
    ),
    "head-tuning": Facts(learns=Learns(loss=1.5)),
    "ia3": Facts(
        learns=Learns(loss=4.0, learning_rate=0.1),
        trials=(
            {"targets": ["attention", "up"], "feedforward": []},
            {"targets": [], "feedforward": ["o", "down"]},
        ),
    ),
    "kadaptation": Facts(
        learns=Learns(loss=3.0, learning_rate=0.05),
        trials=({"rank": 2, "division": 4, "scale": 2.0, "dropout": 0.1, "targets": ["linear", "head"]},),
        bounded_rank=False,
    ),
    "krona": Facts(learns=Learns(loss=3.0), trials=({"factor": 4, "scale": 2.0, "targets": ["linear", "head"]},)),
    "krona-b": Facts(
        learns=Learns(loss=4.0, learning_rate=0.1), trials=({"factor": 4, "scale": 2.0, "beside": "attention"},)
    ),
    "krona-b-res": Facts(learns=Learns(loss=4.0, learning_rate=0.1), trials=({"factor": 8, "layers": "1"},)),
    "idpg": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.03),
        trials=({"length": 6, "bottleneck": 8, "division": 4, "depth": "every", "init": "random"},),
        moves_base=True,
        padded=True,
    ),
    "infoprompt": Facts(
        alone=True,
        random_in_training=True,
        learns=Learns(loss=4.4, steps=80, learning_rate=0.1),
        trials=({"of": {"p-tuning-v2": {"length": 6}}, "beta": 0.5, "gamma": 0.0, "negatives": 3},),
        moves_base=True,
    ),
    "late-prompt-tuning": Facts(
        learns=Learns(loss=4.8, steps=100, learning_rate=0.03),
        trials=({"length": 6, "layer": 1, "generator": "pooling", "bottleneck": 16},),
        moves_base=True,
        padded=True,
    ),
    "layernorm-tuning": Facts(learns=Learns(loss=4.0, steps=80, learning_rate=0.05), trials=({"layers": "1"},)),
    "llama-adapter": Facts(
        learns=Learns(loss=4.1, steps=120, learning_rate=0.1), trials=({"length": 6, "top": 1, "variant": "official"},)
    ),
    "llm-adapters": Facts(
        learns=Learns(loss=4.2, steps=100, learning_rate=0.03),
        trials=(
            {"adapter": "series", "bottleneck": 12},
            {"adapter": "parallel", "bottleneck": 12},
            {"adapter": "prefix", "prefix_length": 4},
        ),
        moves_base=True,
        bounded_rank=False,
    ),
    "lora": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2),
        trials=(
            {"rank": 4, "alpha": 4, "targets": ["linear", "head"], "rank_stabilised": True, "init": "gaussian"},
            {
                "targets": "mlp",
                "rank_pattern": {"down": 3},
                "alpha_pattern": {"up": 5.0},
                "layers": "1",
                "bias": "adapted",
            },
            {"targets": "linear", "rank": 4, "init": "pissa"},
            {"targets": ["q", "v", "up"], "rank": 3, "alpha": 2, "init": "olora", "bias": "adapted"},
            {"targets": ["q", "v", "up"], "rank": 3, "init": "milora"},
            {"targets": ["q", "v", "up"], "rank": 3, "init": "corda"},
        ),
    ),
    "longlora": Facts(
        learns=Learns(loss=3.0, learning_rate=5e-3), trials=({"rank": 4, "targets": "linear", "group": 12},)
    ),
    "longqlora": Facts(
        random_in_training=True,
        learns=Learns(loss=3.0, learning_rate=1.5e-2),
        trials=({"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["linear", "head"], "group": 12},),
        bounded_rank=False,
    ),
    "lora-dropout": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.01),
        trials=({"dropout": 0.2, "samples": 1, "targets": "linear", "rank": 4},),
        random_in_training=True,
    ),
    "lora-fa": Facts(
        learns=Learns(loss=3.0), trials=({"correction": "projected", "targets": "linear", "rank": 4, "dropout": 0.1},)
    ),
    "lora-prompt": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2),
        trials=({"rank": 4, "targets": "linear", "length": 8, "ratio": 20.0},),
        moves_base=True,
    ),
    "lora-plus": Facts(
        learns=Learns(loss=3.0, learning_rate=0.005), trials=({"ratio": 4.0, "targets": "linear", "rank": 4},)
    ),
    "mam-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"prefix_length": 4, "projection": None, "bottleneck": 12, "scale": 2.0, "layers": "1"},),
        moves_base=True,
    ),
    "methods_by_layer": Facts(
        learns=Learns(loss=3.8, steps=80, learning_rate=0.02),
        trials=(
            {"layers": {"0": {"parallel-adapter": {"bottleneck": 12}}, "1-": ["ia3", {"lora": {"rank": 4}}]}},
            {"layers": {"0": [], "1-": {"pfeiffer-adapter": {"bottleneck": 12}}}},
        ),
    ),
    "moslora": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2), trials=({"mixer": "orthogonal", "targets": "linear", "rank": 4},)
    ),
    "multihead-parallel-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"bottleneck": 3, "scale": 2.0, "activation": "silu", "layers": "1"},),
    ),
    "p-tuning": Facts(
        learns=Learns(loss=4.1, steps=260, learning_rate=7e-3),
        trials=(
            {"length": 10, "encoder": "lstm", "hidden": 16},
            {"length": 10, "encoder": "none"},
        ),
        moves_base=True,
    ),
    "p-tuning-v2": Facts(
        learns=Learns(loss=3.5, steps=100, learning_rate=0.12),
        trials=({"length": 6, "layers": "1", "deviation": 1.0}, {"length": 6, "shift": True}),
        moves_base=True,
    ),
    "parallel-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"bottleneck": 12, "beside": "attention", "activation": "silu", "layers": "1"},),
    ),
    "peqa": Facts(learns=Learns(loss=3.3, steps=80, learning_rate=0.01), trials=({"targets": ["q", "v", "down"]},)),
    "pfeiffer-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=(
            {"bottleneck": 12, "activation": "tanh", "layers": "1"},
            {"bottleneck": 12, "activation": "gelu_new", "reads": "stream"},
        ),
    ),
    "prefix-propagation": Facts(
        learns=Learns(loss=3.8, steps=80, learning_rate=0.1),
        trials=({"length": 7, "variant": "combine", "init": "random"},),
        moves_base=True,
    ),
    "prefix-tuning": Facts(
        learns=Learns(loss=3.5, steps=100, learning_rate=4e-2),
        trials=(
            {"length": 8, "projection": 16, "layers": "1"},
            {"length": 8, "projection": None},
        ),
        moves_base=True,
    ),
    "prompt-tuning": Facts(
        learns=Learns(loss=3.5, steps=80, learning_rate=0.1),
        trials=(
            {"length": 8, "init": "random"},
            {"length": 10, "init": "text", "text": "in two words", "text_ids": [40, 7, 21]},
        ),
        moves_base=True,
    ),
    "propetl": Facts(
        learns=Learns(loss=3.8, steps=80, learning_rate=0.02),
        trials=(
            {"of": {"lora": {"rank": 4, "targets": "linear"}}, "density": 0.75},
            {"of": {"parallel-adapter": {"bottleneck": 12}}, "fixed": True},
        ),
    ),
    "ptp": Facts(
        alone=True,
        random_in_training=True,
        learns=Learns(loss=3.5, steps=80, learning_rate=0.1),
        trials=({"of": {"prefix-propagation": {"length": 6}}, "kind": "adversarial", "epsilon": 0.5},),
        moves_base=True,
    ),
    "qa-lora": Facts(
        learns=Learns(loss=3.3, steps=80, learning_rate=1.25e-2),
        trials=(
            {"targets": ["linear"], "rank": 4, "pool": "sum", "init": "gaussian"},
            {"targets": "mlp", "rank_pattern": {"down": 3}, "layers": "1", "bias": "adapted"},
        ),
    ),
    "s2-attn": Facts(
        learns=Learns(loss=3.5, learning_rate=1.5e-2),
        trials=(
            {"of": {"lora": {"rank": 4, "targets": "linear"}}, "group": 8},
            {"of": {"pfeiffer-adapter": {"bottleneck": 12}}, "group": 10},
        ),
    ),
    "s4-design-space": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.01),
        trials=({"rank": 4, "prefix_length": 4, "projection": None, "bottleneck": 6},),
        moves_base=True,
    ),
    "scaled-parallel-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02), trials=({"bottleneck": 12, "scale": 2.0, "layers": "1"},)
    ),
    "serial-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"bottleneck": 12, "activation": "silu", "targets": "o", "layers": "1", "norms": True},),
    ),
    "smop": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.1),
        trials=({"length": 6, "prompts": 2, "noise": 0.0, "init": "random"},),
        moves_base=True,
        padded=True,
        random_in_training=True,
    ),
    "sora": Facts(
        learns=Learns(loss=3.0), trials=({"targets": "linear", "threshold": 0.01, "rank": 4},), stored_at_most=True
    ),
    "sparseadapter": Facts(
        learns=Learns(loss=3.8, learning_rate=0.05),
        trials=(
            {"of": {"lora": {"rank": 4, "targets": "linear"}}, "density": 0.5, "large": True, "score": "erdos-renyi"},
            {"of": {"serial-adapter": {"bottleneck": 12}}, "score": "grasp", "density": 0.3},
        ),
    ),
    "spot": Facts(learns=Learns(loss=3.5, steps=80, learning_rate=0.1), trials=({"length": 8},), moves_base=True),
    "ssf": Facts(
        learns=Learns(loss=3.5, learning_rate=0.1), trials=({"shift": "always", "targets": ["v", "up", "down"]},)
    ),
    "transferable-prompt-tuning": Facts(
        learns=Learns(loss=3.5, steps=80, learning_rate=0.1), trials=({"length": 8},), moves_base=True
    ),
    "unipelt": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"rank": 4, "prefix_length": 4, "projection": None, "layers": "1"},),
        moves_base=True,
    ),
    "vera": Facts(
        learns=Learns(loss=3.5, learning_rate=0.05),
        trials=(
            {"rank": 64, "targets": ["linear", "head"], "save_projection": True, "projection_seed": 7, "dropout": 0.1},
        ),
        bounded_rank=False,
    ),
    "xprompt": Facts(
        alone=True,
        learns=Learns(loss=4.3, steps=100, learning_rate=0.1),
        trials=({"length": 8, "pieces": 4, "tokens_cut": 0.5, "pieces_cut": 0.0, "init": "random"},),
        moves_base=True,
    ),
}


def facts(name: str) -> Facts:
    """Return what is known of a method."""
    return FACTS.get(name, Facts())
