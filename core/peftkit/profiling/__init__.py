"""Where the time and the memory of a training step go: by module, forward and backward."""

from peftkit.profiling.measure import Profile, profile
from peftkit.profiling.report import check, write

__all__ = ["Profile", "check", "profile", "write"]
