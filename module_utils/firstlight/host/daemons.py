# SPDX-License-Identifier: Apache-2.0
"""The driver's daemons: the fabric manager of NVSwitch machines, and the persistence daemon."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from ..runner import run
from . import reading
from .reading import Reader

FABRIC_MANAGER = "nvidia-fabricmanager.service"
PERSISTENCE = "nvidia-persistenced.service"
SHOW = ["systemctl", "show", "--property=Id,LoadState,ActiveState,UnitFileState",
        FABRIC_MANAGER, PERSISTENCE]
FABRIC_MANAGER_VERSION = ["nv-fabricmanager", "--version"]


def read(reader: Reader, nvswitches: int) -> Dict[str, Optional[Dict[str, Any]]]:
    """``fabric_manager`` and ``persistence_daemon``, each ``{state, enabled}`` and more.

    :param nvswitches: how many there are; without one nothing needs a fabric manager.
    """
    units = _units(reader)
    daemons = {"fabric_manager": units.get(FABRIC_MANAGER) if nvswitches else None,
               "persistence_daemon": units.get(PERSISTENCE)}
    for label, unit in daemons.items():
        if unit is not None:
            reader.sources[label] = "systemctl"
        elif label != "fabric_manager" or nvswitches:
            reader.unread[label] = dict(reader.unread.get("services") or {
                "code": reading.UNKNOWN, "reason": "systemctl says nothing of its unit"})
    reader.unread.pop("services", None)
    manager = daemons["fabric_manager"]
    if manager is not None:
        manager["version"] = _version(reader, manager["state"])
    return daemons


def _units(reader: Reader) -> Dict[str, Dict[str, Any]]:
    if not reader.exists("/run/systemd/system"):
        reader.missing("services", reading.ABSENT, "systemd does not run here")
        return {}
    ran = run(SHOW)
    if not ran.ok:
        reader.missing("services", reading.UNKNOWN, ran.complaint())
        return {}
    found = {}
    for block in ran.stdout.strip().split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines())
        there = said.get("LoadState") not in (None, "not-found")
        found[said.get("Id", "")] = {
            "state": said.get("ActiveState") if there else "not-found",
            "enabled": (said.get("UnitFileState") or "").startswith("enabled"),
        }
    return found


def _version(reader: Reader, state: str) -> Optional[str]:
    label = "fabric_manager.version"
    if state == "not-found":
        reader.missing(label, reading.ABSENT, "it is not installed")
        return None
    ran = run(FABRIC_MANAGER_VERSION)
    found = re.search(r"version is\s*:\s*(\d[\d.]*)", ran.stdout)
    if found is None:
        reader.missing(label, reading.UNKNOWN, ran.complaint())
        return None
    reader.sources[label] = " ".join(FABRIC_MANAGER_VERSION)
    return found.group(1)
