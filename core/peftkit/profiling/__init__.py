"""Where the time and the memory of a training step go."""

from peftkit.profiling.profile import Profile, profile

__all__ = ["Profile", "profile"]
