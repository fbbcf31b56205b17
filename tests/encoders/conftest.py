"""A hub that lies empty, and one that is served from this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0" * 40
GATED = b"for those alone who asked"
Cache = Callable[..., Path]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a hub at an address where nothing answers."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.file_download.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def cache_files(no_hub: Path) -> Cache:
    """Write files as the hub's client would have cached them, blobs under their SHA-256."""

    def write(repo: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
        folder = no_hub / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        for part in (folder / "refs", folder / "blobs", snapshot):
            part.mkdir(parents=True, exist_ok=True)
        if ref:
            (folder / "refs" / ref).write_text(commit)
        for name, content in files.items():
            blob = folder / "blobs" / sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / name).symlink_to(blob)
        return snapshot

    return write


@pytest.fixture
def hub_files(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Serve `<org>/<model>/<file>` as the hub does; put content into the dictionary, or GATED."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            org, model, _, _, name = self.path.partition("?")[0].strip("/").split("/", 4)
            content = files.get(f"{org}/{model}/{name}")
            error = {None: "EntryNotFound", GATED: "GatedRepo"}.get(content)
            self.send_response({"EntryNotFound": 404, "GatedRepo": 403}.get(error or "", 200))
            if error or content is None:
                self.send_header("X-Error-Code", str(error))
                content = b""
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield files
    server.shutdown()
    server.server_close()
    thread.join()
