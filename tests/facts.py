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
    bounded_rank: bool = True
    """Whether a rank above a layer's size is refused, where the method has one."""


FACTS = {
    "adalora": Facts(
        learns=Learns(loss=3.0, learning_rate=0.05),
        trials=(
            {"rank": 3, "initial_rank": 5, "targets": "linear", "interval": 3, "warmup": 10, "orthogonality": 0.1},
        ),
        stored_at_most=True,
    ),
    "alphatuning": Facts(
        learns=Learns(loss=3.3, steps=80, learning_rate=0.01), trials=({"targets": ["q", "v", "down"]},)
    ),
    "bitfit": Facts(learns=Learns(loss=3.3, steps=80, learning_rate=0.05), trials=({"targets": ["up", "down"]},)),
    "compacter": Facts(
        learns=Learns(loss=4.0, steps=100, learning_rate=0.05),
        trials=({"bottleneck": 4, "division": 2, "activation": "relu", "targets": "down", "layers": "1"},),
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
    "full": Facts(learns=Learns(loss=1.0, learning_rate=0.01)),
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
    "krona": Facts(learns=Learns(loss=3.0), trials=({"factor": 4, "scale": 2.0, "targets": ["linear", "head"]},)),
    "layernorm-tuning": Facts(learns=Learns(loss=4.0, steps=80, learning_rate=0.05), trials=({"layers": "1"},)),
    "llama-adapter": Facts(
        learns=Learns(loss=4.1, steps=120, learning_rate=0.1), trials=({"length": 6, "top": 1, "variant": "official"},)
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
        ),
    ),
    "lora-dropout": Facts(
        learns=Learns(loss=3.8, steps=100, learning_rate=0.01),
        trials=({"dropout": 0.2, "samples": 1, "targets": "linear", "rank": 4},),
        random_in_training=True,
    ),
    "lora-fa": Facts(
        learns=Learns(loss=3.0), trials=({"correction": "projected", "targets": "linear", "rank": 4, "dropout": 0.1},)
    ),
    "lora-plus": Facts(
        learns=Learns(loss=3.0, learning_rate=0.005), trials=({"ratio": 4.0, "targets": "linear", "rank": 4},)
    ),
    "mam-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"prefix_length": 4, "projection": None, "bottleneck": 12, "scale": 2.0, "layers": "1"},),
        moves_base=True,
    ),
    "moslora": Facts(
        learns=Learns(loss=3.0, learning_rate=1.5e-2), trials=({"mixer": "orthogonal", "targets": "linear", "rank": 4},)
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
        trials=({"length": 6, "layers": "1", "deviation": 1.0},),
        moves_base=True,
    ),
    "parallel-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"bottleneck": 12, "beside": "attention", "activation": "silu", "layers": "1"},),
    ),
    "peqa": Facts(learns=Learns(loss=3.3, steps=80, learning_rate=0.01), trials=({"targets": ["q", "v", "down"]},)),
    "pfeiffer-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02), trials=({"bottleneck": 12, "activation": "tanh", "layers": "1"},)
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
    "qa-lora": Facts(
        learns=Learns(loss=3.3, steps=80, learning_rate=1.25e-2),
        trials=(
            {"targets": ["linear"], "rank": 4, "pool": "sum", "init": "gaussian"},
            {"targets": "mlp", "rank_pattern": {"down": 3}, "layers": "1", "bias": "adapted"},
        ),
    ),
    "scaled-parallel-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02), trials=({"bottleneck": 12, "scale": 2.0, "layers": "1"},)
    ),
    "serial-adapter": Facts(
        learns=Learns(loss=3.4, learning_rate=0.02),
        trials=({"bottleneck": 12, "activation": "silu", "targets": "o", "layers": "1", "norms": True},),
    ),
    "sora": Facts(
        learns=Learns(loss=3.0), trials=({"targets": "linear", "threshold": 0.01, "rank": 4},), stored_at_most=True
    ),
    "ssf": Facts(
        learns=Learns(loss=3.5, learning_rate=0.1), trials=({"shift": "always", "targets": ["v", "up", "down"]},)
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
}


def facts(name: str) -> Facts:
    """Return what is known of a method."""
    return FACTS.get(name, Facts())
