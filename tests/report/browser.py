"""A headless Chromium on the other end of two pipes, driven over its DevTools protocol with nothing but the standard library.

    with Browser() as browser:
        page = browser.open(Path("runs/x/report.html"), width=390, height=844)
        page.evaluate("document.title"), page.names("image"), page.complaints

Chromium reads commands from file descriptor 3 and answers on 4 (``--remote-debugging-pipe``): JSON objects with a zero byte
between them. No port is taken, so browsers run side by side.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60.0


def program() -> str:
    """Path of a Chromium; the test is skipped, with what to do, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed; on Debian and Ubuntu: apt install chromium")
    return found


class Browser:
    """A browser of its own: no profile, no extensions, no network but files."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        switches = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        switches += ["--remote-debugging-pipe", "--disable-background-networking", f"--user-data-dir={self._folder.name}"]
        # The shell puts the pipes where Chromium looks for them; a preexec_fn would not be safe beside threads.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program(), *switches],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers, self._rest = itertools.count(1), b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._write)
        os.close(self._read)
        self._folder.cleanup()

    def open(self, path: Path, *, width: int, height: int, dark: bool = False) -> Page:
        """Show a file in a new window of this size, and wait until it is there."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Page(self, session, path, width, height, dark)

    def ask(self, method: str, params: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Send a command and return its answer; what happens meanwhile is kept in ``events``."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params or {}} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)
        raise TimeoutError(f"{method} was not answered in {SECONDS:.0f} s")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._read, 1 << 16)
            assert data, "the browser is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Page:
    """One open page."""

    def __init__(self, browser: Browser, session: str, path: Path, width: int, height: int, dark: bool) -> None:
        self._browser, self._session, self._width = browser, session, width
        for room in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self._ask(f"{room}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", size)
        self._ask("Page.navigate", {"url": path.resolve().as_uri()})
        end = time.monotonic() + SECONDS
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < end, f"{path} was not shown in {SECONDS:.0f} s"
            time.sleep(0.02)

    @property
    def complaints(self) -> list[str]:
        """What the browser's console said: errors, warnings, exceptions."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(event["params"]) for event in self._events(*kinds)]

    @property
    def requested(self) -> list[str]:
        """Addresses of everything that was asked for but the page itself and data in it."""
        urls = [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._ask("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key such as ``Tab``, ``Enter`` or ``ArrowDown``."""
        code = {"Tab": 9, "Enter": 13}.get(key, 0)
        stroke = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", {"type": "keyDown", **stroke, **text})
        self._ask("Input.dispatchKeyEvent", {"type": "keyUp", **stroke})

    def tree(self) -> list[dict[str, str]]:
        """The accessibility tree as a screen reader meets it: role, name and description of every node that counts."""
        nodes = self._ask("Accessibility.getFullAXTree")["nodes"]
        return [
            {key: str(node.get(key, {}).get("value", "")) for key in ("role", "name", "description")}
            for node in nodes
            if not node["ignored"]
        ]

    def picture(self, path: Path, whole: bool = True) -> None:
        """A PNG of the page, or of what the window shows of it."""
        height = self.evaluate("document.documentElement.scrollHeight")
        clip = {"clip": {"x": 0, "y": 0, "width": self._width, "height": height, "scale": 1}} if whole else {}
        answer = self._ask("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole, **clip})
        path.write_bytes(base64.b64decode(answer["data"]))

    def printed(self, path: Path) -> None:
        """The page as a printer gets it, as PDF on A4."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        path.write_bytes(base64.b64decode(self._ask("Page.printToPDF", paper)["data"]))

    def _ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._browser.ask(method, params, self._session)

    def _events(self, *methods: str) -> list[dict[str, Any]]:
        return [
            event for event in self._browser.events if event.get("sessionId") == self._session and event["method"] in methods
        ]
