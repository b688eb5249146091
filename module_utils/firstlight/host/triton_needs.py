# SPDX-License-Identifier: Apache-2.0
"""What Triton needs of a Python that runs it: its version, a C compiler and Python's headers."""

from __future__ import annotations

import json
import shutil
from typing import Any, Dict, Iterable, List, Mapping, Optional

from ..runner import run

COMPILERS = ("gcc", "clang")
"""What Triton looks for where ``CC`` is not set (runtime/build.py)."""
LIMIT_S = 20.0

CHILD = r"""
import json, os, sys, sysconfig
try:
    from importlib.metadata import version
    triton = version("triton")
except Exception:
    triton = None
include = sysconfig.get_paths()["include"]
print(json.dumps({"triton": triton, "python": "%d.%d" % sys.version_info[:2], "include": include,
                  "headers": os.path.isfile(os.path.join(include, "Python.h"))}))
"""


def read(pythons: Iterable[str], environment: Mapping[str, str]) -> List[Dict[str, Any]]:
    """Each Python as ``{path, python, triton, include, headers, compiler, error}``.

    :param pythons: paths of interpreters that run engines.
    :param environment: of the process that would compile: ``CC`` and ``PATH``.
    """
    compiler = compiler_of(environment)
    found = []
    for path in pythons:
        # Not isolated from the environment of its user: what PYTHONPATH brings is what runs.
        ran = run([path, "-c", CHILD], timeout_s=LIMIT_S)
        said: Dict[str, Any] = {"python": None, "triton": None, "include": None, "headers": None}
        error = "" if ran.ok else ran.complaint()
        if ran.ok:
            try:
                said = json.loads(ran.stdout.rstrip("\n").rpartition("\n")[2])
            except ValueError:
                error = "%s printed no answer" % path
        found.append(dict(said, path=path, compiler=compiler, error=error))
    return found


def compiler_of(environment: Mapping[str, str]) -> Optional[str]:
    """The C compiler that Triton would take."""
    asked = environment.get("CC")
    if asked:
        return shutil.which(asked, path=environment.get("PATH"))
    return next((path for path in (shutil.which(name, path=environment.get("PATH"))
                                   for name in COMPILERS) if path), None)
