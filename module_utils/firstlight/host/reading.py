# SPDX-License-Identifier: Apache-2.0
"""Reading with a memory: where each figure came from, and why another could not be read."""

from __future__ import annotations

import errno
import os
from typing import Any, Dict, List, Optional

MAX_TEXT = 4 * 2**20

ABSENT = "absent"
"""Code of what is not there: the file, the line, the tool that would tell."""
UNKNOWN = "unknown"
"""Code of an answer that is not understood."""
UNASKED = "unasked"
"""Code of what nobody was there to be asked about."""
TIMEOUT = "timeout"
"""Code of a tool that gave no answer in time."""


class Reader:
    """Collects sources, and the reasons for what could not be read, under the labels of figures.

    A label is the way to a figure in the facts, as ``devices[0].memory_total_bytes``.

    :param system_root: where the file system of the host is.
    """

    def __init__(self, system_root: str = "/") -> None:
        self._root = system_root
        self.sources: Dict[str, str] = {}
        self.unread: Dict[str, Dict[str, str]] = {}

    def path(self, name: str) -> str:
        """Where a file of the host is, under the root that is looked at."""
        return os.path.join(self._root, name.lstrip("/"))

    def exists(self, name: str) -> bool:
        """Whether the host has this file."""
        return os.path.exists(self.path(name))

    def names(self, folder: str) -> List[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(os.listdir(self.path(folder)))
        except OSError:
            return []

    def quiet(self, name: str) -> str:
        """A small file's text without its end, empty where it cannot be read; keeps no reason."""
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read(MAX_TEXT).rstrip("\n")
        except OSError:
            return ""

    def text(self, name: str, label: str = "") -> Optional[str]:
        """A small file's text; else ``None``, and the reason is kept under the label (the name)."""
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read(MAX_TEXT)
        except OSError as problem:
            self.refused(label or name, problem, name if label else "")
            return None

    def refused(self, label: str, problem: OSError, what: str = "") -> None:
        """Keep what the operating system said."""
        code = errno.errorcode.get(problem.errno or 0, "eio").lower()
        said = problem.strerror or str(problem)
        self.missing(label, code, "%s: %s" % (what, said) if what else said)

    def missing(self, label: str, code: str, reason: str) -> None:
        """Keep why this figure is null.

        :param code: ``nvml-N``, the name of an errno in lower case, or a code of this module.
        """
        self.unread[label] = {"code": code, "reason": reason}

    def known(self, label: str, value: Any, where: str) -> Any:
        """The value as it is; of one that was not found, where it was looked for is kept."""
        if value is None and label not in self.unread:
            self.missing(label, ABSENT, "not in %s" % where)
        return value
