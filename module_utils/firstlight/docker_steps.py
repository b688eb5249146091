# SPDX-License-Identifier: Apache-2.0
"""What Docker's daemon is to be set to: what is seen, and the steps; nothing is changed here."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from . import paths
from .findings import Finding, finding, shown, text
from .host import docker_engine
from .host.reading import Reader
from .planning import docker_settings

TOLD = ("state", "why", "root", "systemd", "program", "unit", "file", "engine", "running",
        "nvidia", "images")
"""What of the daemon is told."""


class NotChanged(Exception):
    """The change failed or is refused; carries findings for the operator."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__(text(findings))
        self.findings = findings


class Steps:
    """What to do, and how it is told."""

    def __init__(self, seen: Dict[str, Any], path: str, content: Optional[bytes],
                 merged: Dict[str, Any], decided: docker_settings.Decision) -> None:
        self.seen, self.path, self.content, self.merged = seen, path, content, merged
        self.decided = decided

    def lines(self) -> List[str]:
        """One line for each change."""
        return [shown("%s: %s %s" % (
            one.key, "need" if one.needed else "default", json.dumps(one.after, sort_keys=True)))
            for one in self.decided.changes]

    def difference(self) -> Dict[str, str]:
        """Before and after of what changes, and of nothing else."""
        return {"before_header": self.seen["file"], "after_header": self.seen["file"],
                "before": _values((one.key, one.before) for one in self.decided.changes),
                "after": _values((one.key, one.after) for one in self.decided.changes)}


def _values(pairs: Iterable[Tuple[str, Any]]) -> str:
    return "".join("%s: %s\n" % (key, json.dumps(value, sort_keys=True))
                   for key, value in pairs if value is not None)


def observe(reader: Reader, params: Mapping[str, Any]) -> Steps:
    """What is there, and the decision on it.

    :param params: ``needs``, ``defaults``, ``consent`` and ``images``, as ``docker_daemon`` takes
        them.
    :raises NotChanged: the daemon's settings cannot be understood.
    :raises OSError: they cannot be read.
    """
    seen = docker_engine.observe(reader, params["images"])
    # Replaced as a whole, a link would become a file.
    path = os.path.realpath(reader.path(seen["file"]))
    asked = params["needs"] or params["defaults"]
    try:
        content = paths.read(path) if asked else None
    except PermissionError:
        content = None  # without root nothing is written either
    try:
        now = docker_engine.settings(content)
    except ValueError as problem:
        raise NotChanged([finding(
            "docker-settings-damaged", seen["file"], "it cannot be read: %s" % problem,
            "a JSON object", "mend it by hand; dockerd --validate says more",
            needs_root=True)]) from problem
    engine = seen["engine"] or {}
    wanted = docker_settings.changes(
        now, params["needs"], params["defaults"], engine.get("log_driver", ""),
        seen["words"], engine.get("nofile_max"))
    decided = docker_settings.decide(wanted, seen, params["consent"])
    return Steps(seen, path, content, docker_settings.merge(now, decided.changes), decided)


def told(steps: Steps) -> Dict[str, Any]:
    """What ``docker_daemon`` returns in check mode, as far as it says how the daemon is."""
    return {
        "changed": bool(steps.decided.how), "changes": steps.lines(), "how": steps.decided.how,
        "postponed": steps.decided.postponed, **{key: steps.seen[key] for key in TOLD}}
