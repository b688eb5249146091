# SPDX-License-Identifier: Apache-2.0
"""A site's script, sourced in a shell of its own, and what it exports."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Dict, NamedTuple, Optional

from .findings import Finding, finding
from .planning.network import TAKEN, masked
from .runner import run

SECONDS = 15.0
"""That it may take."""

USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What it prints is kept from what is read; a program that it starts does not keep this waiting.
SOURCE = '. "$1" >"$2" 2>&1 </dev/null; code=$?; "$3" -0; exit "$code"'


class Sourced(NamedTuple):
    """``problem`` says why there are no variables, or warns of those that there are."""

    variables: Dict[str, str]
    problem: Optional[Finding]


def source(path: str, seconds: float = SECONDS) -> Sourced:
    """Source a script and take what it exported; nothing of it stays in this process.

    :param path: of the script.
    :param seconds: after which it is ended, and so is all that it waits for.
    """
    if not os.path.isfile(path):
        return Sourced({}, _problem("missing", path, "no such file", "a script to be sourced"))
    shell = shutil.which("bash", path=USUAL_PATH) or "/bin/sh"
    with tempfile.NamedTemporaryFile(prefix="firstlight-hook-") as said:
        # An environment of its own: what it exports is told from what was there.
        ran = run(["env", "-i", "PATH=" + USUAL_PATH, "HOME=" + os.path.expanduser("~"),
                   shell, "-c", SOURCE, shell, path, said.name,
                   # A hook may change where programs are found.
                   shutil.which("env", path=USUAL_PATH) or "/usr/bin/env"], timeout_s=seconds)
        words = masked(said.read(2000).decode("utf-8", "replace")).strip()[-300:]
    if ran.rc is None:
        return Sourced({}, _problem("late", path, "it does not end (%s)" % ran.error,
                                    "a script that only sets variables"))
    pairs = (one.partition("=") for one in ran.stdout.split("\0") if "=" in one)
    variables = {name: value for name, _, value in pairs}
    if not ran.ok:
        # The last line may be a condition that does not hold: what was exported before it counts.
        useful = any(variables.get(name) for name in TAKEN)
        return Sourced(variables if useful else {}, _problem(
            "failed", path, "it ends with %d%s" % (ran.rc, ": " + words if words else ""),
            "a script that ends with 0", "warning" if useful else "error"))
    if not ran.stdout:
        return Sourced({}, _problem("failed", path, "it ends the shell that sources it (exit)%s" % (
            ": " + words if words else ""), "a script to be sourced: return in the place of exit"))
    return Sourced(variables, None)


def _problem(kind: str, path: str, found: str, wanted: str, severity: str = "error") -> Finding:
    return finding("network-hook-" + kind, path, found, wanted,
                   "mend %s, or change network_access_hook" % path, severity=severity)
