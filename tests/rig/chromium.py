# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven through its pipe: no driver and no library are needed.

``with Browser(folder) as browser:`` then ``page = browser.open(path, width=360, dark=True)``, and
``page.value("document.title")``. Where no Chromium is found, :func:`found` is ``None``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 60


def found():
    """The path of a Chromium: ``FIRSTLIGHT_TEST_CHROMIUM``, else the first on the path."""
    named = os.environ.get("FIRSTLIGHT_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page that is loaded, and what was complained of it."""

    def __init__(self, browser, session):
        self.browser = browser
        self.session = session
        self.complaints = []

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def value(self, expression):
        """What an expression is in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                         awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def picture(self, path, width, height):
        """Keep a picture of the page's first lines."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                         clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        pathlib.Path(path).write_bytes(base64.b64decode(told["data"]))


class Browser:
    """The browser's process, with a profile of its own."""

    def __init__(self, folder):
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # Chromium reads from 3 and writes to 4; ours must be neither.
        theirs = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 20) for one in (read, write)]
        self._process = subprocess.Popen(
            ["bash", "-c", 'exec "$@" 3<&%d 4>&%d' % tuple(theirs), "bash", found(),
             "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
             "--remote-debugging-pipe", "--user-data-dir=%s" % folder, "about:blank"],
            pass_fds=theirs, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True)
        for one in (read, write, *theirs):
            os.close(one)
        self._number, self._left, self._pages = 0, b"", {}

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def open(self, path, width=1280, height=900, dark=False, scripts=True):
        """Load a file; returns when it is loaded and everything in it has run."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(domain + ".enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)
        page.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        self._until(lambda told: told.get("method") == "Page.loadEventFired"
                    and told.get("sessionId") == session)
        return page

    def call(self, method, session=None, **params):
        """Ask the browser; returns what it answers."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        if session:
            asked["sessionId"] = session
        os.write(self._write, json.dumps(asked).encode() + b"\0")
        told = self._until(lambda told: told.get("id") == asked["id"])
        assert "error" not in told, told
        return told["result"]

    def _until(self, wanted):
        ends = time.monotonic() + TIMEOUT_S
        while True:
            while b"\0" not in self._left:
                ready = select.select([self._read], [], [], max(0, ends - time.monotonic()))[0]
                more = os.read(self._read, 2**20) if ready else b""
                assert more, "the browser ended, or gave no answer for %d s" % TIMEOUT_S
                self._left += more
            message, _, self._left = self._left.partition(b"\0")
            told = json.loads(message)
            page = self._pages.get(told.get("sessionId"))
            if page and told.get("method") in (
                    "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                page.complaints.append(told["params"])
            if wanted(told):
                return told
