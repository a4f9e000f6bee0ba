"""Chromium without a head, driven by the Chrome DevTools Protocol over its pipe.

Needs the browser alone: no driver, no package, no port. Protocol: NUL-ended JSON on the browser's
file descriptors 3 (in) and 4 (out), ``--remote-debugging-pipe``.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 30.0


def find_chromium() -> str:
    """The browser; without one the test is skipped, or fails where ``EDGEKD_NEED_BROWSER`` is 1."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    why = f"no browser on PATH ({', '.join(NAMES)})"
    if os.environ.get("EDGEKD_NEED_BROWSER") == "1":
        pytest.fail(f"{why}, and EDGEKD_NEED_BROWSER=1 demands one")
    pytest.skip(why)


class Browser:
    """A browser with an empty profile of its own, ended with all its children on leaving."""

    def __init__(self, executable: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="edgekd-browser-")
        child_in, self._write = os.pipe()
        self._read, child_out = os.pipe()
        # above 3 and 4, so that neither is overwritten before it is copied
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (child_in, child_out)]

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self._process = subprocess.Popen(
            [executable, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place,
            close_fds=False,
            start_new_session=True,
        )
        for fd in (child_in, child_out, *high):
            os.close(fd)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait(10)
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT_S
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, method: str, session: str) -> None:
        """Until an event has come."""
        end = time.monotonic() + TIMEOUT_S
        while not any(e.get("method") == method and e.get("sessionId") == session
                      for e in self.events):  # fmt: skip
            self.events.append(self._next(end))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise TimeoutError("the browser does not answer")
            self._buffer += data
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message

    def open(
        self, file: Path | str, width_px: int, *, dark: bool = False, print_media: bool = False,
        scripts: bool = True, height_px: int = 900,
    ) -> Tab:  # fmt: skip
        """A tab that has loaded a file, or an address."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width_px, height=height_px,
                 deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", media="print" if print_media else "",
                 features=[scheme])  # fmt: skip
        if not scripts:
            tab.call("Emulation.setScriptExecutionDisabled", value=True)
        url = file if isinstance(file, str) else file.resolve().as_uri()
        tab.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired", session)
        return tab


class Tab:
    """A page that was opened."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol in this tab."""
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def mouse(self, x: float, y: float) -> None:
        """Move the pointer, CSS pixels from the window's corner."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def touch(self, x: float, y: float) -> None:
        """A tap."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def complaints(self) -> list[str]:
        """Errors, warnings and exceptions of the page."""
        found = []
        for event in self._mine():
            params = event.get("params", {})
            if event["method"] == "Runtime.consoleAPICalled":
                found.append(f"console.{params['type']}: {params['args']}")
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("text")))
            elif event["method"] == "Log.entryAdded":
                found.append(str(params["entry"]["text"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, the page's own aside."""
        asked = [e["params"]["request"]["url"] for e in self._mine()
                 if e["method"] == "Network.requestWillBeSent"]  # fmt: skip
        return asked[1:]

    def screenshot(self, file: Path, whole: bool = True) -> None:
        """PNG of the page or of the window."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(data["data"]))

    def pdf(self) -> bytes:
        """As printed on A4."""
        data = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        return base64.b64decode(data["data"])

    def _mine(self) -> list[dict[str, Any]]:
        return [e for e in self._browser.events if e.get("sessionId") == self._session]
