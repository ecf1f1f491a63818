"""Files of repositories on the Hugging Face hub, kept in its client's cache, where a second start finds them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from peftkit import machine
from peftkit.errors import PeftkitError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LARGE = 1_000_000_000
"""Bytes from which on a download is told of beforehand."""
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError")
"""Errors of HTTP libraries that nothing was answered."""
Found = TypeVar("Found")


class NotOnHubError(PeftkitError):
    """There is no repository of this name that one may read."""


def snapshot(subject: str, name: str, revision: str | None, patterns: Sequence[str], *, nested: bool = False) -> Path:
    """Return the local copy of a repository, once it has the files that fit `patterns`, of the top folder unless
    `nested`.

    Its name is the commit. Without the hub the copy of an earlier call is taken. Raises PeftkitError, which begins with
    the `subject`, for what is not there, not open to this account, cut, or out of reach.
    """
    import huggingface_hub

    ignored = None if nested else ["*/*"]
    return _asked(
        subject,
        name,
        revision,
        lambda: Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=ignored
            )
        ),
    )


def sizes(subject: str, name: str, revision: str | None) -> dict[str, int]:
    """Return the bytes of every file of a repository, by path, as the hub tells them now; errors as `snapshot` has."""
    import huggingface_hub

    def ask() -> dict[str, int]:
        tree = huggingface_hub.HfApi().list_repo_tree(name, recursive=True, revision=revision)
        return {entry.path: entry.size for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)}

    return _asked(subject, name, revision, ask)


def check_room(subject: str, name: str, files: int, size: int) -> None:
    """Tell of a large download of `size` bytes before it begins; PeftkitError where the disk has no room for it."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    free = machine.free_disk(place)
    many = f"{files} file{'s' if files > 1 else ''}"
    told = f"{size / 1e9:,.1f} GB in {many} to {place}, where {free / 1e9:,.1f} GB are free"
    if size > free:
        raise PeftkitError(
            f"{subject}: {name} would be downloaded, {told}: make room, or let HF_HOME name another disk."
        )
    if size >= LARGE:
        logging.getLogger("peftkit").warning("%s: %s is downloaded, %s.", subject, name, told)


def _asked(subject: str, name: str, revision: str | None, ask: Callable[[], Found]) -> Found:
    """Return what the hub's client answers, and its errors as ours."""
    from huggingface_hub import errors, utils

    bars = not utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    of = f" at revision '{revision}'" if revision else ""
    try:
        return ask()
    except errors.RevisionNotFoundError:
        fault = f"{name} on the Hugging Face hub has no revision '{revision}'."
    except errors.GatedRepoError:
        fault = (
            f"{name} on the Hugging Face hub asks for consent to its terms: accept them on its page and log in with "
            "`hf auth login`, or name a local folder."
        )
    except errors.RepositoryNotFoundError:
        raise NotOnHubError(
            f"{subject}: there is neither a folder nor a Hugging Face repository named {name} that you may read. Check "
            "the spelling; for a private one log in with `hf auth login`."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        fault = (
            f"{name}{of} is no folder here, its files are not all in the cache of earlier downloads, and the Hugging "
            f"Face hub cannot be reached for it ({_reason(error)}). Download it elsewhere and name its folder."
        )
    except Exception as error:  # the HTTP library underneath, and so its errors, differ by version
        fault = (
            f"{name}{of} is no folder here, and the Hugging Face hub cannot be reached for it ({_reason(error)}). "
            "Download it elsewhere and name its folder."
            if type(error).__name__ in UNREACHABLE
            else f"{name}{of} could not be downloaded whole from the Hugging Face hub ({_reason(error)}): the same "
            "command goes on where it stopped."
        )
    finally:
        if bars:
            utils.enable_progress_bars()
    raise PeftkitError(f"{subject}: {fault}")


def _reason(error: BaseException) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE forbids it"
    return " ".join(str(error).split())[:200] or type(error).__name__
