"""A store that fails: an S3 server in this process, and a proxy before it that cuts connections and answers 503.

    with s3_server() as store, FaultProxy(store.address, fraction=0.05) as proxy:
        options = {"s3": {"endpoint_url": proxy.url}}

Both take any free port. The proxy's faults are drawn from a seed, one fault per so many requests, half of each kind: an answer
503 before the store is asked, and a connection that is reset in the middle of an answer.
"""

from __future__ import annotations

import http.client
import logging
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any


class Store:
    """An S3 server of moto's, and a client that writes to it."""

    def __init__(self, host: str, port: int) -> None:
        self.address = (host, port)
        self.url = f"http://{host}:{port}"

    def put(self, bucket: str, folder: Path) -> str:
        """Copy a folder into a bucket; its URL."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.url)
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            client.put_object(Bucket=bucket, Key=f"set/{path.name}", Body=path.read_bytes(), ACL="public-read")
        return f"s3://{bucket}/set"


@contextmanager
def s3_server() -> Iterator[Store]:
    """An S3 server on a free port; the caller has set AWS_* credentials."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield Store(*server.get_host_and_port())
    finally:
        server.stop()


class FaultProxy:
    """Passes requests on to a server, and lets ``fraction`` of them fail; ``delay_seconds`` makes every answer late."""

    def __init__(self, target: tuple[str, int], fraction: float = 0.0, seed: int = 0, delay_seconds: float = 0.0) -> None:
        self.target, self.fraction, self.delay_seconds = target, fraction, delay_seconds
        self.requests: list[tuple[str, str, str]] = []
        """Method, path, and Range header of each request."""
        self.faults: list[str] = []
        self.kinds = ["503", "reset"]
        self.most_at_once = self._now = 0
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> str | None:
        """What happens to the next request."""
        with self._lock:
            if self._rng.random() >= self.fraction:
                return None
            self.faults.append(self._rng.choice(self.kinds))
            return self.faults[-1]

    @contextmanager
    def counted(self, method: str, path: str, span: str) -> Iterator[None]:
        """Counts the requests under way."""
        with self._lock:
            self.requests.append((method, path, span))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                with proxy.counted(self.command, self.path, self.headers.get("Range", "")):
                    self._answer(proxy.fault())

            do_HEAD = do_GET

            def _answer(self, fault: str | None) -> None:
                if proxy.delay_seconds:
                    threading.Event().wait(proxy.delay_seconds)
                if fault == "503":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                upstream = http.client.HTTPConnection(*proxy.target)
                upstream.request(self.command, self.path, headers=dict(self.headers))
                answer = upstream.getresponse()
                body = answer.read()
                upstream.close()
                if fault == "reset" and not body:
                    self._reset()
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if fault == "reset":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    self._reset()
                    return
                self.wfile.write(body)

            def _reset(self) -> None:
                # Closing with a linger time of 0 sends a reset instead of an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

        return Handler
