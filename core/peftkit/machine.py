"""What the machine has, and what this process takes of it: memory, cores and disk, on every system."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from peftkit.posix import resource

STATUS = Path("/proc/self/status")


def available_memory() -> int:
    """Measure the bytes that the machine can give without swapping."""
    return psutil.virtual_memory().available


def resident_memory() -> int:
    """Measure the bytes that this process has in memory now."""
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """Measure the most bytes that this process had in memory; those it has now where the system keeps no peak."""
    # Not getrusage where it can be helped: a process begins with the peak of the one that started it.
    peak = _status("VmHWM")
    if peak is None:
        peak = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is None and resource is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return resident_memory() if peak is None else peak


def cores() -> int:
    """Count the cores that this process may use."""
    process = psutil.Process()
    # macOS has no affinity.
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def free_disk(place: Path) -> int:
    """Measure the bytes that are free where `place` is, or would be made."""
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())
    return psutil.disk_usage(str(existing)).free


def _status(key: str) -> int | None:
    """Return bytes by a line of what Linux tells of this process."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="utf-8").split("\n")
    line = next((line for line in lines if line.startswith(key)), None)
    return None if line is None else int(line.split()[1]) * 1024
