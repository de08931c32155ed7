"""A model hub on this machine, as far as reading a dataset's files asks for one: what exists, how large it is, and its bytes.

with hub(folder, "user/set") as address:        # hf://datasets/user/set, at endpoint ``address``
    RemoteFiles({"hf": {"endpoint": address}}).read("hf://datasets/user/set/x-000000.tar", 0, 512)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@contextmanager
def hub(folder: Path, name: str, spans: list[str] | None = None) -> Iterator[str]:
    """Serve the files of ``folder`` as the dataset ``name``; yields the endpoint. ``spans`` gets the ranges asked for."""

    def described(path: Path) -> dict[str, Any]:
        return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: a test's output is its own."""

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path.startswith(f"/api/datasets/{name}/tree/"):
                self._json([described(found) for found in sorted(folder.iterdir())])
            elif path.startswith(f"/api/datasets/{name}"):
                self._json({"id": name, "sha": COMMIT, "siblings": []})
            elif path.startswith(f"/datasets/{name}/resolve/") and (folder / path.rpartition("/")[2]).is_file():
                self._bytes(folder / path.rpartition("/")[2])
            else:
                self._json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        def _json(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

        def _bytes(self, path: Path) -> None:
            data = path.read_bytes()
            first, last = 0, len(data) - 1
            if span := self.headers.get("Range"):
                if spans is not None:
                    spans.append(span)
                start, _, stop = span.removeprefix("bytes=").partition("-")
                first, last = int(start), min(last, int(stop)) if stop else last
            part = {"Content-Range": f"bytes {first}-{last}/{len(data)}"} if span else {}
            self._send(206 if span else 200, data[first : last + 1], part)

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
