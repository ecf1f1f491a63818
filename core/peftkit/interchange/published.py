"""Adapters that are named by an id of the hub, `OWNER/NAME[/SUBFOLDER][@REVISION]`, where no folder has that name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from peftkit import files, hub
from peftkit.errors import PeftkitError
from peftkit.interchange.reader import READERS

FORM = "OWNER/NAME[/SUBFOLDER][@REVISION]"
SUBJECT = "adapter"
_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<inside>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Published:
    """An adapter on the hub."""

    name: str
    subfolder: str
    """Empty for the top folder."""
    revision: str | None

    def fetched(self) -> Path:
        """Return the folder of its files in the cache of the hub's client.

        Raises PeftkitError for what is not there or cannot be reached, and for a repository that holds no adapter.
        """
        wanted = [self._inside(name) for _, each in READERS.items() for name in (each.configuration, each.tensors)]
        copy = hub.snapshot(SUBJECT, self.name, self.revision, wanted, nested=True)
        folder = copy / self.subfolder
        reader = next((each for _, each in READERS.items() if folder.is_dir() and each.claims(folder)), None)
        if reader is not None and (folder / reader.tensors).is_file():
            return folder
        held = hub.sizes(SUBJECT, self.name, copy.name)
        if reader is not None and self._inside(reader.pickled) in held:
            raise PeftkitError(
                f"{SUBJECT}: {self} holds its tensors as {reader.pickled} only, a pickle, which runs code when it is "
                f"opened and is not read. Where you trust it, `hf download {self.name}` brings it; the refusal of "
                f"its folder has the lines that write {reader.tensors}."
            )
        known = {each.configuration for _, each in READERS.items()}
        places = sorted({str(PurePosixPath(path).parent) for path in held if PurePosixPath(path).name in known} - {"."})
        hint = (
            f" Its folders {', '.join(places[:8])} look like adapters: name one, as {self.name}/{places[0]}."
            if places
            else ""
        )
        raise PeftkitError(
            f"{SUBJECT}: {self} on the Hugging Face hub holds no adapter of a library that is known: wanted are "
            f"{' and '.join((reader.configuration, reader.tensors)) if reader else ' or '.join(sorted(known))}.{hint}"
        )

    def run(self, folder: Path) -> Path:
        """Return where the run of a fetched `folder` is kept."""
        commit = folder.parents[len(PurePosixPath(self.subfolder).parts) - 1].name if self.subfolder else folder.name
        # Flat, so that the run of one folder does not lie in that of another.
        place = f"in--{self.subfolder.replace('/', '--')}" if self.subfolder else "top"
        return files.cache_folder() / "adapters" / self.name.replace("/", "--") / commit / place

    def _inside(self, name: str) -> str:
        return (PurePosixPath(self.subfolder) / name).as_posix()

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.name}{'/' if self.subfolder else ''}{self.subfolder}{revision}"


def published(place: Path) -> Published | None:
    """Return the adapter on the hub that a name may be; None for paths.

    A name that begins with a folder that is here is a path.
    """
    text = place.as_posix()
    found = _ID.fullmatch(text)
    if found is None or place.exists() or Path(place.parts[0]).exists() or ".." in place.parts:
        return None
    return Published(found["name"], found["inside"].strip("/"), found["revision"])


def published_instead(target: str, fault: PeftkitError) -> Path:
    """Return `target` where it names an adapter on the hub; raises `fault`, why it is no recipe, otherwise."""
    found = published(Path(target))
    if found is None:
        raise fault
    try:
        found.fetched()
    except hub.NotOnHubError:
        raise fault from None
    except PeftkitError as error:
        raise PeftkitError(f"{fault} Nor is it an adapter on the Hugging Face hub: {error}") from None
    return Path(target)
