# SPDX-License-Identifier: Apache-2.0
"""What is known to break: the rows of ``catalog/known_issues.yml`` that hold for a plan."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, Dict, List

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

Issue = Dict[str, Any]
Case = Dict[str, Any]
"""What rows are held against: ``engine``, ``version``, ``torch``, ``runtime``, ``class``,
``l4t_major``, ``device``, ``capability``, ``quantisation``, ``format``, ``docker`` and
``tensor_parallel``.
What is not known is ``None``, and no row that asks for it holds."""


def that_hold(case: Case, rows: List[Issue]) -> List[Issue]:
    """The rows all of whose conditions hold."""
    engines = ("", case["engine"], "docker" if case["runtime"] == "docker" else case["engine"])
    return [row for row in rows if row["engine"] in engines
            and all(CONDITIONS[key](case, wanted) for key, wanted in row["when"].items())]


@lru_cache(maxsize=1024)
def _within(version: str, specifier: str) -> bool:
    try:
        return Version(version) in SpecifierSet(specifier, prereleases=True)
    except InvalidVersion:
        return False


def _version(key: str) -> Callable[[Case, Any], bool]:
    return lambda case, wanted: bool(case[key]) and _within(str(case[key]), wanted)


def _one_of(key: str) -> Callable[[Case, Any], bool]:
    return lambda case, wanted: case[key] in wanted


CONDITIONS: Dict[str, Callable[[Case, Any], bool]] = {
    "version": _version("version"),
    "torch": _version("torch"),
    "docker": _version("docker"),
    "tensor_parallel": _version("tensor_parallel"),
    "runtime": lambda case, wanted: bool(case["runtime"] == wanted),
    "classes": _one_of("class"),
    "l4t_majors": _one_of("l4t_major"),
    "devices": _one_of("device"),
    "capabilities": _one_of("capability"),
    "quantisations": _one_of("quantisation"),
    "formats": _one_of("format"),
    "always": lambda case, wanted: bool(wanted),
}


def said(row: Issue) -> str:
    """The row as a reason."""
    report = " (%s)" % row["report"] if row["report"] else ""
    return "%s: %s%s." % (row["id"], row["action"]["note"].rstrip("."), report)
