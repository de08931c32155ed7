"""An S3 server in this process whose faults a test decides, request by request.

    with FaultyS3() as server:
        server.fault = lambda method, path, query: "503" if method == "PUT" else None

Faults: "503" answers SlowDown without asking the store; "cut" closes the connection in the middle of an answer's body.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Fault = Callable[[str, str, str], str | None]
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"


class FaultyS3:
    """The server, on a free port; ``requests`` holds method, path and query of all that came."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._app = DomainDispatcherApplication(create_backend_app)
        self.fault: Fault = lambda method, path, query: None
        self.requests: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def client(self) -> Any:
        """A client that sees no faults unless ``fault`` says so."""
        return boto3.client("s3", endpoint_url=self.url)

    def contents(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Every object below the prefix."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {key[len(prefix) :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        with self._lock:
            self.requests.append(request)
            fault = self.fault(*request)
        if fault == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(BUSY)))])
            return [BUSY]
        body = self._app(environ, start_response)
        return self._cut(body) if fault == "cut" else body

    def _cut(self, body: Iterable[bytes]) -> Iterable[bytes]:
        whole = b"".join(body)
        yield whole[: len(whole) // 2]
        raise ConnectionError("cut by the test")
