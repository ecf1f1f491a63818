"""Consent to run Python code that came with something: kept outside of run folders, and bound to the code itself."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftkit import files
from peftkit.errors import PeftkitError

_given: set[str] = set()
"""What was agreed to in this process, for a state folder that cannot be written."""


def digest(code: Mapping[str, Any]) -> str:
    """Return what stands for some code, which is described by its places and what is there."""
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


def give(code: Mapping[str, Any]) -> None:
    """Keep that some code may be run; a state folder that cannot be written is a warning."""
    _given.add(digest(code))
    path = _record(code)
    if not path.is_file():
        try:
            files.write_json(path, dict(code))
        except PeftkitError as error:
            logging.getLogger("peftkit").warning("that this code may be run is not kept: %s", error)


def given(code: Mapping[str, Any]) -> bool:
    """Say whether someone on this machine has agreed to some code as it is."""
    return digest(code) in _given or _record(code).is_file()


def _record(code: Mapping[str, Any]) -> Path:
    """Return where the consent to some code is kept: below `PEFTKIT_STATE`, or `peftkit` in the user's state folder."""
    own = os.environ.get("PEFTKIT_STATE")
    state = Path(own) if own else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "peftkit"
    return state / "trusted" / f"{digest(code)}.json"
