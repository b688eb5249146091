# SPDX-License-Identifier: Apache-2.0
"""What serves on a host, and what is there of ours: services, processes, passports, ports."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import re
from typing import Any, Dict, List, Optional, Sequence

from . import (
    docker_api,
    network_settings,
    passport,
    paths,
    processes,
    python_venv,
    services,
)
from .docker_api import Api, Away, Refused
from .http_client import get
from .planning import way_in
from .runner import run

SPEC: Dict[str, Any] = {
    "root": {"type": "path", "default": ""},
    "ports": {"type": "list", "elements": "int", "default": []},
    "libraries": {"type": "list", "elements": "str", "default": []},
}
"""Options of the modules that look."""

# What lies directly under a root of ours; the last is a file system's own.
OURS = {*paths.FOLDERS, "lost+found"}
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# The journal of a switch that was ended in the middle.
HALF_DONE = re.compile(r"endpoint-([a-z0-9][a-z0-9-]*)\.json")


# Seconds for a daemon to answer: whether one is there is a part of what is asked.
DOCKER_S = 5


def observe(root: str, ports: Sequence[int], libraries: Sequence[str]) -> Dict[str, Any]:
    """What ``endpoint_info`` returns.

    :param root: ``firstlight_root``, in one spelling.
    :param ports: whose holders are wanted.
    :param libraries: sonames.
    :raises services.ServiceError: the service manager cannot be read.
    :raises OSError: a file of ours cannot be.
    """
    kind = services.kind_for_this_host()
    managers: List[Any] = [services.manager(kind, root)]
    containers = _containers()
    if containers is not None:
        from .docker_service import Docker  # much to load, for what most hosts do not have

        managers.append(Docker(root, Api(timeout_s=DOCKER_S), patience_s=0))
    running = processes.engines(root)
    half_done = [match.group(1) for match in map(
        HALF_DONE.fullmatch, _listed(os.path.join(root, "journal"))) if match]
    on_disk = [name for name in _listed(os.path.join(root, "endpoints")) if NAME.fullmatch(name)]
    labelled = [one["endpoint"] for one in containers or [] if one["root"] == root
                and NAME.fullmatch(one["endpoint"] or "")]
    endpoints = {
        name: dict(_endpoint(root, name, managers, running.get(name, [])),
                   half_done=name in half_done)
        for name in sorted({*on_disk, *half_done, *running, *labelled})
    }
    return {
        "root": root,
        "strangers": sorted(set(_listed(root)) - OURS),
        "environments": [name for name in sorted(_listed(os.path.join(root, "venvs")))
                         if python_venv.is_ours(os.path.join(root, "venvs", name))],
        "caches": sorted(_listed(os.path.join(root, "cache"))),
        "canaries": sorted(name[: -len(".json")] for name in _listed(
            os.path.join(root, "canaries")) if name.endswith(".json")),
        "network": os.path.exists(os.path.join(root, "network", network_settings.STATE)),
        "containers": containers or [],
        "manager": kind,
        "uid": os.geteuid(),
        "endpoints": endpoints,
        "ports": _holders(ports, containers or []),
        "python": {
            "version": platform.python_version(),
            "venv": importlib.util.find_spec("ensurepip") is not None,
        },
        "haproxy": _haproxy(),
        "openssl": os.access(way_in.OPENSSL, os.X_OK),
        "missing_libraries": [name for name in libraries if not _loads(name)],
    }


def _containers() -> Optional[List[Dict[str, Any]]]:
    """Every container of the host, or None where no daemon answers."""
    if docker_api.socket_path() is None:
        return None
    from . import docker_service

    if not docker_service.has_docker():
        return None
    try:
        found = Api(timeout_s=DOCKER_S).containers([]) or []
        return sorted(({
            "ports": sorted({port["PublicPort"] for port in one.get("Ports") or []
                             if port.get("PublicPort")}),
            "name": one["Names"][0].lstrip("/"),
            "endpoint": (one.get("Labels") or {}).get(docker_service.ENDPOINT),
            "root": (one.get("Labels") or {}).get(docker_service.ROOT),
        } for one in found if one.get("Names")), key=lambda one: one["name"])
    except (Away, Refused):
        return None


def _holders(ports: Sequence[int], containers: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """Who holds ports. Of a container's it is a process of the daemon's, so its labels tell."""
    found: Dict[str, Any] = {str(port): who for port, who in processes.holders(ports).items()}
    for one in containers:
        for port in one["ports"]:
            if str(port) in found and NAME.fullmatch(one["endpoint"] or ""):
                found[str(port)].update(endpoint=one["endpoint"], root=one["root"])
    return found


def _endpoint(root: str, name: str, managers: Sequence[Any],
              running: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    found = passport.read(root, name)
    manager = next((one for one in managers if os.path.exists(one.files(name)[0])), managers[0])
    status, restarts = manager.status(name), manager.restarts(name)
    native = [one["plan"] for one in running if one["pid"] == status["pid"]]
    plan = status.get("plan") or (native[0] if native else None)
    pids = [one["pid"] for one in running]
    if manager.KIND == "docker":
        pids += manager.pids(name)
    url = found["plan"]["url"] if found else None
    definition = paths.read(manager.files(name)[0])
    return {
        "name": name,
        "state": status["state"],
        "detail": status["detail"],
        "older": passport.older(root, name),
        "restarts": restarts,
        "pid": status["pid"],
        "plan": plan,
        "healthy": bool(url and plan and get(url + "/health", timeout_s=5).status == 200),
        "pids": sorted(pids),
        "strays": [] if native else [one["pid"] for one in running],
        "passport": found,
        "manager": manager.KIND if definition is not None else None,
        "definition": None if definition is None else hashlib.sha256(definition).hexdigest(),
        "log": manager.log_tail(name) if status["state"] == "failed" or restarts else "",
        "way_in": _way_in(managers[0], root, name),
        "gpus_seen": _gpus_seen(manager, name, found, plan),
    }


def _way_in(manager: Any, root: str, name: str) -> Dict[str, str]:
    if not any(map(os.path.lexists, [
            *manager.files(way_in.service_name(name)), *way_in.files(root, name)])):
        return {}
    from .way_in import WayIn  # much to load, for what most endpoints do not have

    return WayIn(manager.KIND, root, name).digests()


def _gpus_seen(manager: Any, name: str, found: Any, plan: Any) -> Any:
    """A container may have lost its GPUs since it was started."""
    if manager.KIND != "docker" or not found or not plan or not found["plan"]["gpus"]:
        return None
    from . import placement

    return placement.look(found["plan"], [], manager.wanted(name))["gpus"]


def _listed(folder: str) -> List[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _haproxy() -> Optional[str]:
    """The version of the HAProxy that ways in run, or None."""
    if not os.access(way_in.PROGRAM, os.X_OK):
        return None
    found = re.search(r"version (\d+(\.\d+)+)", run([way_in.PROGRAM, "-v"]).stdout)
    return found.group(1) if found else None


def _loads(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True
