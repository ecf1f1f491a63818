"""A small Hugging Face hub on localhost: listings, revisions, files with ranges, refusals, downloads that are cut."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


def commit(name: str, revision: str) -> str:
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


@dataclass
class SmallHub:
    """Folders by (repository, revision), and what was asked for."""

    address: str = ""
    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    """Names of files of which the connection breaks off in the middle, every time."""
    sent: list[str] = field(default_factory=list)
    """The files that were sent, as REPOSITORY/FILE."""

    def add(self, name: str, folder: Path, revision: str = "main") -> None:
        self.folders[name, revision] = folder

    def find(self, name: str, revision: str) -> tuple[Path, str] | None:
        """Return the folder of a branch, a tag or a commit, and its commit."""
        for (known, branch), folder in self.folders.items():
            if known == name and revision in (branch, commit(name, branch)):
                return folder, commit(name, branch)
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: SmallHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path)
        if listing is not None:
            self._list(listing[1], listing[2], listing[3] or "main")
        elif file is not None:
            self._send_file(*file.groups(), body=body)
        else:
            self._refuse(404, "RepoNotFound")

    def _found(self, name: str, revision: str) -> tuple[Path, str] | None:
        """Return what is there, or refuse as the hub does."""
        if all(known != name for known, _ in self.hub.folders) or name in self.hub.private:
            self._refuse(401, "RepoNotFound")
        elif (found := self.hub.find(name, revision)) is None:
            self._refuse(404, "RevisionNotFound")
        else:
            return found
        return None

    def _list(self, name: str, what: str | None, revision: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        folder, sha = found
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        if what == "tree":
            oid = [hashlib.sha1(path.read_bytes()).hexdigest() for path in paths]
            rows = zip(names, paths, oid, strict=True)
            self._json([{"type": "file", "path": n, "size": p.stat().st_size, "oid": o} for n, p, o in rows])
        else:
            self._json({"id": name, "sha": sha, "siblings": [{"rfilename": n} for n in names], "private": False})

    def _send_file(self, name: str, revision: str, inside: str, *, body: bool) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        if name in self.hub.gated:
            self._refuse(403, "GatedRepo")
            return
        path = found[0] / inside
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", found[1])
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        self.hub.sent.append(f"{name}/{inside}")
        if path.name in self.hub.cut:
            self.wfile.write(data[first : first + (len(data) - first) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data[first:])

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def small_hub(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[SmallHub]:
    """Serve, and let this process's client ask here and keep what it gets in `cache`."""
    from huggingface_hub import constants, file_download

    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setattr(constants, "ENDPOINT", hub.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(file_download.time, "sleep", lambda seconds: None)
    patch.setenv("HF_HUB_OFFLINE", "0")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
