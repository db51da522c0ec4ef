"""A real Chromium without a window, by Debian's chromedriver and nothing but the standard library.

Set CHROMIUM and CHROMEDRIVER to use others than those on the PATH.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.request

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "needs Debian's chromium and chromium-driver"
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Browser:
    """One window of a given size."""

    def __init__(self, base, width, height, profile):
        self._base = base
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"],
                   "mobileEmulation": {"deviceMetrics": {
                       "width": width, "height": height, "pixelRatio": 1, "mobile": width < 600}}}
        wanted = {"browserName": "chrome", "goog:loggingPrefs": {"browser": "ALL"},
                  "goog:chromeOptions": options}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def _call(self, method, path, content=None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            self._base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url):
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script, *arguments):
        """What a function body of JavaScript returns."""
        body = {"script": script, "args": arguments}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def press(self, *keys):
        """Keys to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", f"{self._session}/actions",
                   {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def complaints(self):
        """Errors and warnings on the console."""
        found = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self):
        """The window as PNG."""
        return base64.b64decode(self._call("GET", f"{self._session}/screenshot"))

    def close(self):
        self._call("DELETE", self._session)


@contextlib.contextmanager
def browser(folder, width=1280, height=900):
    """A browser that is gone afterwards; its files lie in ``folder``."""
    with open(folder / "driver.log", "wb") as log:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=log, stderr=log)
    try:
        window = Browser(f"http://127.0.0.1:{_port(driver, folder)}", width, height,
                         folder / f"profile-{width}")
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait()


def _port(driver, folder):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and driver.poll() is None:
        for line in (folder / "driver.log").read_text().splitlines():
            if "started successfully on port" in line:
                return int(line.rstrip(".").rpartition(" ")[2])
        time.sleep(0.05)
    raise RuntimeError((folder / "driver.log").read_text())
