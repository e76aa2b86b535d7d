"""A headless Chromium that looks at pages, over its debugging pipe (--remote-debugging-pipe): no package is needed.

`python -m tests.chromium PAGE PICTURE WIDTH HEIGHT [ID]` makes a screenshot of a file or an address, from an element of
the page on: a PNG, or a JPEG where PICTURE ends so.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60  # seconds for an answer


def find_chromium() -> str | None:
    """The program, from the variable CHROMIUM or by its usual names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One tab. `requests` and `complaints` (of the console and the log) are those of all pages so far."""

    def __init__(self, program: str) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.events: list[str] = []
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        read_end, self.to_browser = os.pipe()
        self.from_browser, write_end = os.pipe()
        script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # the browser expects descriptors 3 and 4
        flags = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={self.profile}",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", script, str(read_end), str(write_end), program, *flags],
            pass_fds=(read_end, write_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self.buffer, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self.to_browser)
        os.close(self.from_browser)
        self.process.terminate()
        self.process.wait(TIMEOUT)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
        raise AssertionError(f"no answer to {method}")

    def open(self, page: Path | str, width: int, height: int) -> None:
        """Load a file or an address at a size in CSS pixels, and wait until all of it is there. A narrow window is a
        phone."""
        self.events.clear()
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 1 + phone, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT
        while "Page.loadEventFired" not in self.events:
            assert time.monotonic() < deadline, f"{page} does not load"
            self._next()

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page, as soon as it is true."""
        deadline = time.monotonic() + TIMEOUT
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} does not come true"
            time.sleep(0.05)
        return value

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG or JPEG."""
        kind = {"format": "png"} if path.suffix == ".png" else {"format": "jpeg", "quality": 78}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **kind)["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def _next(self) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self.buffer:
            data = os.read(self.from_browser, 2**20)
            assert data, "the browser has ended"
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        method, params = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.complaints.append(json.dumps(params))
        return message


if __name__ == "__main__":
    page, picture, width, height, *anchor = sys.argv[1:]
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium: name it in the variable CHROMIUM")
    with Chromium(program) as browser:
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(page if page.startswith("http") else Path(page), int(width), int(height))
        if anchor:
            browser.evaluate(f"document.getElementById({anchor[0]!r}).scrollIntoView()")
        browser.screenshot(Path(picture))
