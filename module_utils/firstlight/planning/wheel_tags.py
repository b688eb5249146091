# SPDX-License-Identifier: Apache-2.0
"""The tags of wheels that a Python environment takes: PEP 425, 600 and 656, from its facts.

``packaging`` lists them for the interpreter that it runs in. Ours runs on another machine, so the
interpreter and the platforms are given to it.
"""

from __future__ import annotations

import re
from typing import Any, List, Mapping, Optional, Tuple

from packaging import tags

Environment = Mapping[str, Any]

# A machine without a limit would make a list without an end.
MOST_MINORS = 200
# As old as wheels for it get; everything else began with glibc 2.17.
OLDEST_GLIBC = {"x86_64": 5, "i686": 5}
OLD_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
# What a 32-bit interpreter on a 64-bit kernel is.
NARROW = {"x86_64": "i686", "aarch64": "armv7l"}


def supported(environment: Environment) -> List[str]:
    """The tags that an environment takes, the most specific first.

    A plain ``linux`` comes after those that name a C library: it promises none. (pip has it first.)

    :param environment: as ``prebuilt_wheel_info`` returns it: ``implementation``, ``version``,
        ``free_threaded``, ``machine``, ``bits`` and ``libc`` are read.
    :returns: tags such as ``cp312-cp312-manylinux_2_28_x86_64``; none where the version of the
        interpreter is not known.
    """
    version = python_version(environment)
    if version is None:
        return []
    places = platforms(environment)
    short = "%d%d" % version
    name = environment.get("implementation")
    found: List[tags.Tag] = []
    if name == "cpython":
        abi = "cp%s%s" % (short, "t" if environment.get("free_threaded") else "")
        found += tags.cpython_tags(version, [abi], places)
    found += tags.compatible_tags(version, "%s%s" % (
        {"cpython": "cp", "pypy": "pp"}.get(str(name), "py"), short), places)
    return list(dict.fromkeys(str(tag) for tag in found))


def python_version(environment: Environment) -> Optional[Tuple[int, int]]:
    """Major and minor of the interpreter."""
    return _pair(environment.get("version"))


def libc(environment: Environment) -> Tuple[str, Optional[Tuple[int, int]]]:
    """The C library: ``glibc``, ``musl`` or empty, and its version."""
    found = environment.get("libc") or {}
    return str(found.get("name") or ""), _pair(found.get("version"))


def machine(environment: Environment) -> str:
    """The architecture that the interpreter was compiled for."""
    name = str(environment.get("machine") or "").lower()
    return NARROW.get(name, name) if environment.get("bits") == 32 else name


def platforms(environment: Environment) -> List[str]:
    """The platforms of an environment, the most specific first."""
    where = machine(environment)
    name, version = libc(environment)
    found = []
    if name == "glibc" and version and version[0] == 2:
        for minor in range(min(version[1], MOST_MINORS), OLDEST_GLIBC.get(where, 17) - 1, -1):
            found.append("manylinux_2_%d_%s" % (minor, where))
            if minor in OLD_NAMES:
                found.append("%s_%s" % (OLD_NAMES[minor], where))
    elif name == "musl" and version:
        found += ["musllinux_%d_%d_%s" % (version[0], minor, where)
                  for minor in range(min(version[1], MOST_MINORS), -1, -1)]
    return [*found, "linux_" + where]


def _pair(text: Any) -> Optional[Tuple[int, int]]:
    match = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", str(text or ""), re.ASCII)
    return (int(match.group(1)), int(match.group(2))) if match else None
