# SPDX-License-Identifier: Apache-2.0
"""Has a hub serve, with these faults, in place of the one that did: ``hub.py FOLDER FAULTS``.

Without faults, ``hub.py FOLDER``, it ends the one that serves. In FOLDER are its ``repositories``
and ``log``, which goes on, and its ``url`` and ``pid``. The containers reach it by the bridge.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

HUB = pathlib.Path(__file__).resolve().parents[3] / "tests" / "rig" / "hub"
POLL_S = 0.05


def stop(folder: pathlib.Path) -> None:
    """End the one that serves, and wait for its end."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        if str(HUB) in pathlib.Path("/proc/%d/cmdline" % pid).read_text():
            os.kill(pid, signal.SIGTERM)
            # One that has ended and that nobody waited for has no command line.
            while str(HUB) in pathlib.Path("/proc/%d/cmdline" % pid).read_text():
                time.sleep(POLL_S)
    (folder / "pid").unlink(missing_ok=True)


def start(folder: pathlib.Path, faults: str) -> None:
    """Have one serve, where another did before, at the same port."""
    found = subprocess.run(
        ["docker", "network", "inspect", "bridge"], stdout=subprocess.PIPE, check=True)
    address = json.loads(found.stdout)[0]["IPAM"]["Config"][0]["Gateway"]
    url = folder / "url"
    port = url.read_text().strip().rpartition(":")[2] if url.exists() else "0"
    (folder / "log").touch()
    with open(folder / "errors", "ab") as errors:
        serving = subprocess.Popen(
            [sys.executable, str(HUB), "--bind", address, "--port", port, "--faults", faults,
             "--repos", str(folder / "repositories"), "--log", str(folder / "log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True)
    (folder / "pid").write_text(str(serving.pid))
    said = serving.stdout.readline()
    if not said:
        sys.exit("The hub does not start: " + (folder / "errors").read_text())
    url.write_text(said)


if __name__ == "__main__":
    where, given = pathlib.Path(sys.argv[1]), sys.argv[2:]
    stop(where)
    if given:
        start(where, *given)
