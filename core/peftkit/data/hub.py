"""Rows of data sets from the Hugging Face hub, where there is a network or a local copy."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peftkit.errors import PeftkitError

PATIENCE = 4.0
"""Seconds that the hub has to answer before it counts as out of reach."""
CONVERTED = "refs/convert/parquet"
"""The hub's own parquet copy of a data set that is published as a loading script, which `datasets` no longer runs."""


class HubUnreachableError(PeftkitError):
    """The hub does not answer, and there is no local copy."""


@dataclass(frozen=True)
class HubDataset:
    """Where a data set is on the hub; prints as its id."""

    id: str
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    """Our split names to the hub's, where they differ."""

    def __str__(self) -> str:
        return self.id

    def records(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the records of `train`, `validation` or `test`.

        Raises HubUnreachableError where there is neither network nor local copy, PeftkitError for other faults.
        """
        name = self.splits.get(split, split)
        if not offline() and not answers():
            raise HubUnreachableError(
                f"the Hugging Face hub ({endpoint()}) cannot be reached, and {self.id} was to be read from it."
            )
        yield from self._load(name)

    def _load(self, split: str) -> Any:
        import datasets
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError

        faults = []
        for revision in (None, CONVERTED):
            try:
                return datasets.load_dataset(self.id, self.config, split=split, revision=revision)
            except (OSError, RuntimeError, ValueError, DatasetsError, HTTPError) as error:
                faults.append(" ".join(str(error).split())[:300])
        message = f"the data set {self.id}, split {split}, could not be loaded from the hub: {faults[0]}"
        raise HubUnreachableError(message) if offline() else PeftkitError(message)


def offline() -> bool:
    """Return whether the environment forbids the network (`HF_HUB_OFFLINE`, `HF_DATASETS_OFFLINE`)."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def endpoint() -> str:
    """Return the address of the hub, which `HF_ENDPOINT` may name."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def answers(patience: float = PATIENCE) -> bool:
    """Return whether the hub answers within `patience` seconds, name look-up included."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint(), method="HEAD"), timeout=patience):
                answered.append(True)
        except urllib.error.HTTPError as error:
            answered.append(error.code < 500 and error.code != 407)
        except (OSError, ValueError):
            answered.append(False)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return bool(answered and answered[0])
