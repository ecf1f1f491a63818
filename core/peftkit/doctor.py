"""The machine as a run would find it: versions, device, precision, kernels, and optional packages that are missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.requirements import Requirement

from peftkit.device import Precision, choose_device, usual_precision
from peftkit.kernels import fused_attention, varlen_attention
from peftkit.versions import versions

DEVELOPMENT = "dev"
"""The extra that a checkout needs and no user does."""
EXTRA = re.compile(r"""extra == ["']([^"']+)["']""")
"""Where a marker names an extra."""
COMPILERS = ("c++", "g++", "clang++")
"""What torch.compile asks the system for on a processor."""


@dataclass(frozen=True)
class Extra:
    """One set of optional packages."""

    name: str
    lacking: tuple[str, ...]
    """Packages that are not there, or whose version is outside of the bounds; empty where all is well."""

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install 'peftkit[{self.name}]'"


@dataclass(frozen=True)
class Diagnosis:
    """What `peft doctor` prints."""

    versions: dict[str, str]
    device: str
    threads: int
    precision: Precision
    kernels: dict[str, str]
    """What computes each part of a step, by the part."""
    extras: tuple[Extra, ...] | None
    """None where peftkit itself is not installed, so that no list of them is there."""


def diagnose() -> Diagnosis:
    """Look at this machine; no model is read and nothing is fetched."""
    device = choose_device("auto")
    precision = usual_precision(device)
    try:
        extras = tuple(optional(metadata.requires("peftkit") or ()))
    except metadata.PackageNotFoundError:
        extras = None
    return Diagnosis(
        versions=versions(),
        device=_named(device),
        threads=torch.get_num_threads(),
        precision=precision,
        kernels=_kernels(device, precision.name),
        extras=extras,
    )


def optional(requirements: Sequence[str]) -> Iterator[Extra]:
    """Iterate over the extras that `requirements` (as a package's metadata have them) name, by name."""
    parsed = [Requirement(text) for text in requirements]
    everywhere = [requirement for requirement in parsed if _applies(requirement, "")]
    names = {name for each in parsed if each.marker for name in EXTRA.findall(str(each.marker))}
    for name in sorted(names - {DEVELOPMENT}):
        own = [each for each in parsed if _applies(each, name) and each not in everywhere]
        yield Extra(name, tuple(filter(None, map(_lack, own))))


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _lack(requirement: Requirement) -> str | None:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return requirement.name
    fits = requirement.specifier.contains(found, prereleases=True)
    return None if fits else f"{requirement.name} {found}, wanted {requirement.specifier}"


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        held = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"cuda: {torch.cuda.get_device_name(device)}, {held:.1f} GiB"
    return device.type


def _kernels(device: torch.device, precision: str) -> dict[str, str]:
    plain = "batched products, without a fused kernel"
    attention = {
        "cpu": "torch's fused kernel for processors" if fused_attention.PRESENT else plain,
        "cuda": "FlashAttention-2 of torch, for rows of many lengths"
        if varlen_attention.PRESENT and precision in ("bf16", "fp16")
        else plain,
    }
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    able = f"possible, with {compiler}" if compiler else f"not possible: none of {', '.join(COMPILERS)} is there"
    return {
        "packed attention": attention.get(device.type, plain),
        "low-rank pairs": "products of torch, with a backward pass of their own",
        "train.compile": able if device.type == "cpu" else "by torch, with its own compiler",
    }
