"""What POSIX systems alone have; None where this system has it not. No other file imports such modules."""

from __future__ import annotations

import os

try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import resource
except ImportError:
    resource = None

FOLDERS_OPEN = hasattr(os, "O_DIRECTORY")
"""Whether a folder can be opened as a file is, to be flushed to the disk or locked."""
__all__ = ["FOLDERS_OPEN", "fcntl", "resource"]
