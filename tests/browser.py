"""A browser to look at pages with: Chromium by its driver, over HTTP, used as a person uses it: by mouse, wheel and keys."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
DRIVERS = ("chromedriver", "chromium.chromedriver")

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
"""Switches: no window, and nothing asked of any network."""


def missing() -> str:
    """Return what is not installed, or an empty string."""
    wanted = {"Chromium": CHROMIUM, "its driver": DRIVERS}
    return "; ".join(f"{what} is not installed: {', '.join(names)}" for what, names in wanted.items() if not any(map(shutil.which, names)))


class Browser:
    """One window; a context manager.

    Args:
        folder: Where the browser keeps its profile and cache.
        size: Width and height of the page that is seen, in pixels.
        is_dark: Whether it prefers dark pages.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 900), is_dark: bool = False) -> None:
        self.folder, self.size, self.is_dark = folder, size, is_dark
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Browser:
        program = next(filter(None, map(shutil.which, DRIVERS)))
        self._driver = subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._driver.stdout is not None
        # "ChromeDriver was started successfully on port 41235."
        line = next(line for line in self._driver.stdout if "successfully on port" in line)
        self._session = f"http://127.0.0.1:{int(line.rpartition('port')[2].strip(' .' + chr(10)))}/session"
        chromium = {
            "binary": next(filter(None, map(shutil.which, CHROMIUM))),
            "args": [*QUIET, f"--user-data-dir={self.folder / 'profile'}"],
        }
        capabilities = {"goog:chromeOptions": chromium, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            made = self._ask("", {"capabilities": {"alwaysMatch": capabilities}})
        except BaseException:
            self._driver.kill()
            raise
        self._session += f"/{made['sessionId']}"
        metrics = {"width": self.size[0], "height": self.size[1], "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.is_dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._ask("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.communicate(timeout=20)

    def _ask(self, path: str, data: dict[str, Any] | None = None, method: str = "POST") -> Any:
        body = None if method != "POST" else json.dumps(data or {}).encode()
        request = urllib.request.Request(self._session + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with self._opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Give a command of Chromium's own."""
        return self._ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self._ask("/url", {"url": page.absolute().as_uri()})

    def enter(self, selector: str) -> None:
        """Go into a frame."""
        self._ask("/frame", {"id": self._ask("/element", {"using": "css selector", "value": selector})})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page, and return what it returns."""
        return self._ask("/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def count(self, selector: str) -> int:
        """Return how many elements there are."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", selector))

    def place(self, selector: str, index: int = 0) -> tuple[int, int]:
        """Scroll to an element, and return where its middle is in the window."""
        script = """
            const element = document.querySelectorAll(arguments[0])[arguments[1]];
            const isSeen = (frame) => frame.top >= 0 && frame.bottom <= innerHeight;
            if (!isSeen(element.getBoundingClientRect())) element.scrollIntoView({ block: "center", behavior: "instant" });
            const frame = element.getBoundingClientRect();
            return [Math.round(frame.left + frame.width / 2), Math.round(frame.top + frame.height / 2)];
        """
        x, y = self.run(script, selector, index)
        return x, y

    def click(self, selector: str, index: int = 0, times: int = 1) -> None:
        """Click into the middle of an element."""
        x, y = self.place(selector, index)
        press = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}] * times
        self._point({"type": "pointerMove", "x": x, "y": y}, *press)

    def drag(self, selector: str, dx: int, dy: int) -> None:
        """Take hold of an element at its left upper corner, move, and let go."""
        x, y = self.run(
            "const frame = document.querySelector(arguments[0]).getBoundingClientRect(); return [frame.left + 5, frame.top + 5]", selector
        )
        x, y = round(x), round(y)
        start, move = {"type": "pointerMove", "x": x, "y": y}, {"type": "pointerMove", "x": x + dx, "y": y + dy, "duration": 50}
        self._point(start, {"type": "pointerDown", "button": 0}, move, {"type": "pointerUp", "button": 0})

    def wheel(self, selector: str, dy: int) -> None:
        """Turn the wheel over an element."""
        x, y = self.place(selector)
        scroll = {"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": dy}
        self._ask("/actions", {"actions": [{"type": "wheel", "id": "wheel", "actions": [scroll]}]})

    def write(self, text: str) -> None:
        """Press keys; what has the focus gets them."""
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self._ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def _point(self, *actions: dict[str, Any]) -> None:
        self._ask("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": list(actions)}]})

    def picture(self, path: Path, is_whole: bool = False) -> bytes:
        """Write what is seen, or the whole page, as PNG, and return it."""
        data = base64.b64decode(self.devtools("Page.captureScreenshot", captureBeyondViewport=is_whole)["data"])
        path.write_bytes(data)
        return data

    def complaints(self) -> Sequence[str]:
        """Return what the page wrote to the console since it was asked last: errors of scripts, files that were refused."""
        return [entry["message"] for entry in self._ask("/se/log", {"type": "browser"})]
