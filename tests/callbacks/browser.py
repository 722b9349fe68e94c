"""Headless Chromium, driven through DevTools over a pipe with nothing but the standard library."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The program, by its usual names."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a headless Chromium; what its console says and what it asks for is kept.

    Attributes:
        console: messages and uncaught errors.
        requests: addresses that were asked for, except what lies in the page itself.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        own_read, their_write = os.pipe()
        their_read, own_write = os.pipe()
        # Chromium expects its pipe on 3 and 4; from far above, so that putting them there overwrites neither
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD, 30) for one in (their_read, their_write)]
        command = [
            "bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]} {theirs[0]}<&- {theirs[1]}>&-', "bash",
            str(find_chromium()), "--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", f"--user-data-dir={folder}", f"--window-size={width},{height}",
        ]  # fmt: skip
        environment = os.environ | {"HOME": str(folder)}
        self.process = subprocess.Popen(
            command, pass_fds=theirs, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for one in (their_read, their_write, *theirs):
            os.close(one)
        self._read, self._write, self._buffer, self._count = own_read, own_write, b"", 0
        self.console: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout: float = 60.0, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, path: Path) -> None:
        """Load a file and wait until it is complete."""
        self.console.clear()
        self.requests.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, timeout: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout
        while not self.value(expression):
            assert time.monotonic() < deadline, (expression, self.console)
            time.sleep(0.05)

    def pixels(self, selector: str) -> np.ndarray:
        """(H, W, 3) uint8 what is seen of an element, after it was scrolled to the middle of the window."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{element}.scrollIntoView({{block: 'center'}})")
        box = self.value(f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])({element}.getBoundingClientRect())")
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) | {"scale": 1}
        return self.screenshot(clip=clip)

    def screenshot(self, **params: Any) -> np.ndarray:
        """(H, W, 3) uint8 of the window, or of what ``Page.captureScreenshot`` is told."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **params)["data"])
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def drag(self, selector: str, right: float, down: float) -> None:
        """Press the mouse in the middle of an element and move it."""
        element = f"document.querySelector({json.dumps(selector)})"
        x, y = self.value(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **mouse)
        for k in range(1, 6):
            self.call(
                "Input.dispatchMouseEvent", type="mouseMoved", x=x + right * k / 5, y=y + down * k / 5,
                button="left", buttons=1,
            )  # fmt: skip
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x + right, y=y + down, **mouse)

    def close(self) -> None:
        """End it and all that it started."""
        self._session = ""
        self.call("Browser.close")
        self.process.wait(30)
        os.close(self._read)
        os.close(self._write)

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer in time; it had said {self.console}"
            received = os.read(self._read, 2**20)
            assert received, f"Chromium ended with {self.process.poll()}"
            self._buffer += received
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.console.append(
                f"{params['type']}: {[one.get('value', one.get('description')) for one in params['args']]}"
            )
        elif event == "Runtime.exceptionThrown":
            self.console.append(f"exception: {params['exceptionDetails']}")
        elif event == "Log.entryAdded":
            self.console.append(
                f"{params['entry']['level']}: {params['entry']['text']} {params['entry'].get('url', '')}"
            )
        elif event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self.requests.append(url)
