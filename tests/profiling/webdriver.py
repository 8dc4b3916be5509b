"""A headless Chromium by its driver's own protocol, W3C WebDriver: no package is needed.

Where `chromium` and `chromedriver` are on the path: of Debian, the packages chromium and
chromium-driver.
"""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTING = 30  # seconds at most
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,900"]


class Browser:
    """One page at a time."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        options = {"args": OPTIONS, "binary": shutil.which("chromium")}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options}}
        answer = self._ask("POST", "/session", {"capabilities": wanted})
        self._address += f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, given: Any = None) -> Any:
        data = None if given is None else json.dumps(given).encode()
        request = urllib.request.Request(self._address + path, data, method=method)
        with self._open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path) -> None:
        self._ask("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function of this body returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def command(self, name: str, **given: Any) -> Any:
        """One of the browser's own commands (DevTools)."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": given})

    def point(self, selector: str, number: int = 0) -> None:
        """Move the mouse over an element."""
        element = self.run(
            "return document.querySelectorAll(arguments[0])[arguments[1]]", selector, number
        )
        moves = [{"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0}]
        self._act({"type": "pointer", "id": "mouse", "actions": moves})

    def press(self, key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._act({"type": "key", "id": "keys", "actions": keys})

    def _act(self, device: dict[str, Any]) -> None:
        self._ask("POST", "/actions", {"actions": [device]})

    def dark(self, wanted: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, allowed: bool) -> None:
        """For the pages that are opened from now on."""
        self.command("Emulation.setScriptExecutionDisabled", value=not allowed)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """What the page wrote to the console since the last call."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._ask("DELETE", "")


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser of its own, gone at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        opened = Browser(f"http://127.0.0.1:{port}")
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait()


def _wait(port: int) -> None:
    until = time.monotonic() + STARTING
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
