"""A real headless browser, driven over Chromium's own debugging pipe (chromedevtools.github.io/devtools-protocol)."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT = 60


class Browser:
    """One tab. `requests` are the addresses it asked for, `complaints` what it wrote to the console as a warning."""

    def __init__(self, profile: Path) -> None:
        ours, theirs = _pipe(), _pipe()  # (read, write): of what it is told, and of what it says
        words = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        # Chromium listens on 3 and speaks on 4.
        code = f"import os, sys; os.dup2({ours[0]}, 3); os.dup2({theirs[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *words],
            pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self.said_to, self.heard_from = ours[1], theirs[0]
        self.numbers, self.rest, self.session = itertools.count(1), b"", None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._begin()
        except BaseException:
            self.stop()
            raise
        return self

    def _begin(self) -> None:
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the browser, whatever it does."""
        self.process.terminate()
        self.process.wait()
        os.close(self.said_to)
        os.close(self.heard_from)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for what it comes to."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        waiting = memoryview(json.dumps(message).encode() + b"\0")
        while waiting:
            waiting = waiting[os.write(self.said_to, waiting) :]
        while True:
            answer = self._hear()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]  # type: ignore[no-any-return]

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Show a page and wait until all its charts are drawn; gives the seconds until the first one was."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        self.requests.clear()
        self.complaints.clear()
        self("Page.navigate", url=page.as_uri())
        loaded = "location.protocol == 'file:' && document.readyState == 'complete'"
        self.wait(f"{loaded} && typeof waiting == 'object' && !waiting.length")
        return self.value("performance.getEntriesByName('first chart')[0].startTime") / 1000

    def wait(self, expression: str) -> None:
        """Wait until something is true on the page."""
        until = time.monotonic() + TIMEOUT
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What an expression (a promise, too) comes to on the page."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Write what is seen, or all of the page, as PNG."""
        found = self("Page.captureScreenshot", captureBeyondViewport=whole, **({} if not whole else self._whole()))
        file.write_bytes(base64.b64decode(found["data"]))

    def _whole(self) -> dict[str, Any]:
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}}

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.heard_from], [], [], TIMEOUT)[0], "the browser says nothing"
            part = os.read(self.heard_from, 2**20)
            assert part, "the browser is gone"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        what, params = message.get("method"), message.get("params", {})
        if what == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"]))
        elif what == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return message


def _pipe() -> tuple[int, int]:
    """The ends of a pipe, numbered so high that none of them is 3 or 4."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high
