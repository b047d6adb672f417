"""Headless Chromium over its DevTools protocol, as far as these tests need it.

aiohttp is ComfyUI's own dependency, so the page can be driven without another package.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)


def executable() -> str | None:
    """Return Chromium's path, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. ``console`` collects what it logs: (level, text, url of the script)."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1400, 900)) -> None:
        import aiohttp

        self.console: list[tuple[str, str, str]] = []
        self.requested: list[str] = []
        self._ids = iter(range(1, 10**9))
        window = f"--window-size={size[0]},{size[1]}"
        command = [str(executable()), *FLAGS, window, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._loop = asyncio.new_event_loop()
        try:
            address = self._page_address(profile / "DevToolsActivePort")
            self._session = self._do(self._make_session(aiohttp))
            self._socket = self._do(self._session.ws_connect(address, max_msg_size=0))
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # no clipboard for a page in the background
            self.send(
                "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
            )
        except BaseException:
            self._process.kill()
            raise

    def send(self, method: str, timeout: float = 120, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that come meanwhile are recorded."""
        number = next(self._ids)
        self._do(self._socket.send_str(json.dumps({"id": number, "method": method, "params": params})))
        while True:
            message = self._do(asyncio.wait_for(self._socket.receive(), timeout))
            if not isinstance(message.data, str):
                raise RuntimeError("Chromium closed the page")
            answer = json.loads(message.data)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._record(answer)

    def run(self, script: str) -> Any:
        """Evaluate JavaScript (await allowed at its top level, the last ``return`` counts) and return its value."""
        wrapped = f"(async () => {{ {script} }})()"
        result = self.send("Runtime.evaluate", expression=wrapped, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 120) -> Any:
        """Return the expression's value as soon as it is true.

        Raises:
            TimeoutError: naming the expression and what the page last logged.

        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(f"return {expression}")
            if value:
                return value
            time.sleep(0.3)
        raise TimeoutError(f"never true: {expression}; console: {self.console[-5:]}")

    def key(self, name: str, code: int) -> None:
        """Press and release one key; Enter also presses the button that has the focus, as with a real keyboard."""
        typed = {"text": "\r"} if name == "Enter" else {}
        for kind, more in (("keyDown", typed), ("keyUp", {})):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)

    def screenshot(self, path: Path) -> None:
        """Write what is visible as a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._do(self._socket.close())
        self._do(self._session.close())
        self._process.terminate()
        self._process.wait(20)
        self._loop.close()

    def _record(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event["method"] == "Runtime.consoleAPICalled":
            text = " ".join(str(arg.get("value", arg.get("description", ""))) for arg in params["args"])
            frames = params.get("stackTrace", {}).get("callFrames", [])
            self.console.append((params["type"], text, " ".join(frame["url"] for frame in frames)))
        elif event["method"] == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.console.append(("error", text, details.get("url", "")))
        elif event["method"] == "Log.entryAdded":
            entry = params["entry"]
            self.console.append((entry["level"], entry["text"], entry.get("url", "")))
        elif event["method"] == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    def _page_address(self, port_file: Path) -> str:
        end = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError("Chromium did not start")
            time.sleep(0.1)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as reply:
            pages = json.load(reply)
        return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")

    @staticmethod
    async def _make_session(aiohttp: Any) -> Any:
        return aiohttp.ClientSession()

    def _do(self, awaitable: Any) -> Any:
        return self._loop.run_until_complete(awaitable)
