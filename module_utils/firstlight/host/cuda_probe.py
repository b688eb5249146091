# SPDX-License-Identifier: Apache-2.0
"""What a fresh process gets that loads libcuda: which file, and whether CUDA starts with it."""

from __future__ import annotations

import json
import os
import sys
from typing import Mapping, NamedTuple, Optional

from ..runner import run

LIMIT_S = 30.0
STUB_LIBRARY = 34

# Alone in its process: a driver that hangs or crashes takes nothing with it.
CHILD = r"""
import ctypes, json, os, sys
said = {"path": None, "init": None, "text": "", "nvml": None, "error": ""}
try:
    cuda = ctypes.CDLL(sys.argv[1])
except (OSError, ValueError) as problem:
    # What cannot be said where a path is no text is a ValueError here and below.
    said["error"] = str(problem) or "the loader gives no reason"
else:
    with open("/proc/self/maps", errors="surrogateescape") as maps:
        # The kernel writes a line break in a name so.
        paths = [line.split(None, 5)[5].rstrip("\n").replace("\\012", "\n")
                 for line in maps if "libcuda" in line.rpartition("/")[2]]
    said["path"] = paths[0] if paths else None
    if sys.argv[2] == "init":
        said["init"] = cuda.cuInit(0)
        text = ctypes.c_char_p()
        try:
            cuda.cuGetErrorString(said["init"], ctypes.byref(text))
        except (AttributeError, ValueError):
            pass
        said["text"] = (text.value or b"").decode("utf-8", "replace")
        try:
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            said["nvml"] = nvml.nvmlInit_v2()
        except (OSError, AttributeError, ValueError):
            pass
print("\n" + json.dumps(said), flush=True)
os._exit(0)  # what a library does when a program ends has no part in it
"""


class Loaded(NamedTuple):
    """What became of it.

    ``path`` is the file that was loaded, ``None`` where none was; ``init`` what ``cuInit``
    returned, ``None`` where it was not called or gave no answer; ``nvml`` what ``nvmlInit`` did.
    ``error`` says what went wrong before any of them could tell.
    """

    path: Optional[str]
    init: Optional[int]
    text: str
    nvml: Optional[int]
    error: str
    hangs: bool


def load(library: str, init: bool, env: Optional[Mapping[str, str]] = None) -> Loaded:
    """Load a library in a fresh process, and start CUDA with it.

    Neither LD_LIBRARY_PATH nor CUDA_VISIBLE_DEVICES of this process count: no service has them.

    :param library: a name, which the loader looks up, or a path.
    :param init: whether to call ``cuInit`` and ``nvmlInit`` too; that may take seconds.
    :param env: variables that the process is given.
    """
    argv = ["/usr/bin/env", "-u", "LD_LIBRARY_PATH", "-u", "CUDA_VISIBLE_DEVICES",
            *("%s=%s" % pair for pair in (env or {}).items()),
            sys.executable, "-I", "-S", "-c", CHILD, library, "init" if init else "load"]
    ran = run(argv, timeout_s=LIMIT_S)
    if not ran.ok:
        hangs = ran.rc is None and "no answer" in ran.error
        said = ran.error or ran.stderr.strip() or "signal %d" % -(ran.rc or 0)
        return Loaded(None, None, "", None, said, hangs)
    try:
        # Libraries may print what they like first.
        said = json.loads(ran.stdout.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        return Loaded(None, None, "", None, "the process ended without an answer", False)
    path = said["path"]
    return Loaded(os.path.realpath(path) if path else None, said["init"], said["text"],
                  said["nvml"], said["error"], False)
