# SPDX-License-Identifier: Apache-2.0
"""Has an index serve FOLDER/index in place of the one that did: ``index.py FOLDER FAULTS``.

Without faults, ``index.py FOLDER``, it ends the one that serves. In FOLDER are ``log``, which goes
on, ``url`` and ``pid``. Containers reach it by the bridge. One version of tiny-kernel is yanked,
and of another the index tells no hash.
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
import urllib.parse

INDEX = pathlib.Path(__file__).resolve().parents[3] / "tests" / "rig" / "wheels" / "index.py"
POLL_S = 0.05


def stop(folder: pathlib.Path) -> None:
    """End the one that serves, and wait for its end."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        if str(INDEX) in pathlib.Path("/proc/%d/cmdline" % pid).read_text():
            os.kill(pid, signal.SIGTERM)
            # One that has ended and that nobody waited for has no command line.
            while str(INDEX) in pathlib.Path("/proc/%d/cmdline" % pid).read_text():
                time.sleep(POLL_S)
    (folder / "pid").unlink(missing_ok=True)


def start(folder: pathlib.Path, faults: dict) -> None:
    """Have one serve, where another did before, at the same port."""
    found = subprocess.run(
        ["docker", "network", "inspect", "bridge"], stdout=subprocess.PIPE, check=True)
    address = json.loads(found.stdout)[0]["IPAM"]["Config"][0]["Gateway"]
    url = folder / "url"
    port = url.read_text().strip().rpartition(":")[2] if url.exists() else "0"
    (folder / "log").touch()
    names = [one.name for one in (folder / "index").iterdir()]
    about = {name: {"yanked": "it loses data"} for name in names if "-1.5.0+" in name}
    hashless = [urllib.parse.quote(name.replace("-1.5.0+", "-1.5.1+")) for name in about]
    faults = {"/simple/tiny-kernel/": {"links": hashless}, **faults}
    with open(folder / "errors", "ab") as errors:
        serving = subprocess.Popen(
            [sys.executable, str(INDEX), str(folder / "index"), "--address", address,
             "--port", port, "--faults", json.dumps(faults), "--about", json.dumps(about),
             "--log", str(folder / "log")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True)
    (folder / "pid").write_text(str(serving.pid))
    said = serving.stdout.readline()
    if not said:
        sys.exit("The index does not start: " + (folder / "errors").read_text())
    url.write_text(said)


if __name__ == "__main__":
    where, given = pathlib.Path(sys.argv[1]), sys.argv[2:]
    stop(where)
    if given:
        start(where, json.loads(given[0]))
