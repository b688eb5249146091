# SPDX-License-Identifier: Apache-2.0
"""What Triton needs of a Python that runs it: its version, a C compiler and Python's headers."""

from __future__ import annotations

import json
import shutil
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ..runner import run

COMPILERS = ("gcc", "clang")
"""What Triton looks for where ``CC`` is not set (runtime/build.py)."""
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where systemd and supervisor let a service look for programs (systemd.exec(5))."""
LIMIT_S = 20.0

SAID: Dict[str, Tuple[type, ...]] = {
    "python": (str,), "triton": (str, type(None)), "prefix": (str,), "include": (str,),
    "headers": (bool,)}
"""What a Python is asked for."""

CHILD = r"""
import json, os, sys, sysconfig
try:
    from importlib.metadata import version
    triton = version("triton")
except Exception:
    triton = None
include = sysconfig.get_paths()["include"]
print(json.dumps({"triton": triton, "python": "%d.%d" % sys.version_info[:2],
                  "prefix": sys.prefix, "include": include,
                  "headers": os.path.isfile(os.path.join(include, "Python.h"))}))
"""


def read(pythons: Iterable[str]) -> List[Dict[str, Any]]:
    """Each Python as ``{path, python, triton, prefix, include, headers, compiler, error}``.

    :param pythons: paths of interpreters that run engines.
    """
    compiler = compiler_of()
    return [dict(_asked(path), path=path, compiler=compiler) for path in pythons]


def _asked(path: str) -> Dict[str, Any]:
    # Not isolated from the environment of its user: what PYTHONPATH brings is what runs.
    ran = run([path, "-c", CHILD], timeout_s=LIMIT_S)
    nothing = dict.fromkeys(SAID)
    if not ran.ok:
        said = ran.stderr.strip().splitlines()[-1:] or ["exit %s" % ran.rc]
        return dict(nothing, error="%s: %s" % (path, ran.error or said[0]))
    try:
        said = json.loads(ran.stdout.rstrip("\n").rpartition("\n")[2])
        answer = {key: said[key] for key in SAID}
    except (ValueError, TypeError, KeyError):
        answer = {}
    # An engine's environment may print what it likes.
    if not all(isinstance(answer.get(key), kinds) for key, kinds in SAID.items()):
        return dict(nothing, error="%s gives no answer that can be read" % path)
    return dict(answer, error="")


def compiler_of() -> Optional[str]:
    """The C compiler that Triton would take in a service, which has no ``CC`` and a plain PATH."""
    return next((path for path in (shutil.which(name, path=SERVICE_PATH) for name in COMPILERS)
                 if path), None)
