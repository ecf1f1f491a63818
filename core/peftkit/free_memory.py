"""How much memory a device has left, as the machine, and the limits of a container, tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from peftkit import machine
from peftkit.errors import PeftkitError

ROOT = Path("/")


def free_memory(device: torch.device, root: Path = ROOT) -> int:
    """Measure the bytes that this process may still take on `device`; `root` is where /proc and /sys are looked for.

    On a CPU it is what the machine can give without swapping, or less where a control group limits it; on a GPU
    what the driver has left and what the allocator holds unused. Raises PeftkitError where the machine does not tell.
    """
    if device.type in ("cuda", "xpu"):
        module: Any = getattr(torch, device.type)
        free, _ = module.mem_get_info(device)
        return free + module.memory_reserved(device) - module.memory_allocated(device)
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    available = _available(root)
    if available is None:
        raise PeftkitError(
            "train.memory is 'auto', but this machine does not tell how much memory is free (no MemAvailable in "
            "/proc/meminfo): give a size, such as train.memory=6GB."
        )
    return max(0, min([available, *_within_groups(root)]))


def check_room(size: int, what: str, root: Path = ROOT) -> None:
    """Refuse to take `size` bytes for `what` where the host has fewer; where it does not tell, nothing is refused."""
    if _available(root) is None:
        return
    free = free_memory(torch.device("cpu"), root)
    if size > free:
        raise PeftkitError(
            f"{what}: {size / 1e9:,.1f} GB of memory would be needed, and {free / 1e9:,.1f} GB are free: choose a "
            "smaller size."
        )


def _available(root: Path) -> int | None:
    """Return the bytes that the machine can give; of another root those that its /proc tells, None without one."""
    if root == ROOT:
        return machine.available_memory()
    told = _table(root / "proc/meminfo").get("MemAvailable")
    return None if told is None else 1024 * told


def _within_groups(root: Path) -> Iterator[int]:
    """Tell what each control group that this process is in, the outer ones too, leaves of its limit."""
    listed = root / "proc/self/cgroup"
    lines = listed.read_text().strip("\n").split("\n") if listed.is_file() else []
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds == "":
            top, limit, used, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top, limit = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            used, cached = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):
            most, now = (_number(root / top / group / name) for name in (limit, used))
            if most is not None and now is not None:
                # Pages of files that nobody reads are given up first.
                yield most - now + _table(root / top / group / "memory.stat").get(cached, 0)


def _number(file: Path) -> int | None:
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _table(file: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    lines = [line.replace(":", " ").split() for line in text.split("\n")]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
