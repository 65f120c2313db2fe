"""Headless Chromium, for pages that are made by scripts: spoken to over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from websockets.sync.client import connect

_START_S = 60.0


def find_chromium() -> str | None:
    """The program, where it is installed (Debian: apt-get install chromium)."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page of a browser that lives as long as the block."""

    def __init__(self, folder: Path, *, width_px: int = 1280, height_px: int = 1600) -> None:
        self._numbers = count(1)
        self._command = [
            *(find_chromium() or "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={width_px},{height_px}", "about:blank"),
        ]
        self._port_file = folder / "DevToolsActivePort"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_S
        while not (self._port_file.is_file() and len(self._port_file.read_text().splitlines()) > 1):
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.1)
        port = self._port_file.read_text().splitlines()[0]
        pages = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
        page = next(page for page in pages if page["type"] == "page")
        self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        self._ask("Page.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def open(self, url: str) -> None:
        """Go to an address; what its scripts draw is waited for with `wait_for`."""
        self._ask("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, timeout_s: float = 60) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.evaluate(script)):
            assert time.monotonic() < deadline, (
                f"{script} never came true; the page says {self.evaluate('document.body.innerText')}"
            )
            time.sleep(0.2)
        return value

    def type_text(self, text: str) -> None:
        """Type into what has the focus, over what is selected there."""
        self._ask("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != number:
            pass  # an event
        assert "result" in answer, answer
        return answer["result"]
