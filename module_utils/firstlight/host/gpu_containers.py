# SPDX-License-Identifier: Apache-2.0
"""Containers that run with GPUs: how each was given them, and what it sees of them now."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional

from .. import docker_api
from ..docker_api import Api, Refused, quoted
from ..runner import run

ENDPOINT, ROOT = "firstlight.endpoint", "firstlight.root"
"""Labels of a container of ours."""

CDI_NAME = re.compile(r"[a-z0-9.-]+/[\w.-]+=\S+")
# What the driver's nodes are by their number, as systemd writes it: static, and char-nvidia.
ALLOWED = re.compile(r"/dev/char/195:\d+|char-(?:195|nvidia)|/dev/nvidia\d")
NONE = ("", "void", "none")
VISIBLE = "NVIDIA_VISIBLE_DEVICES="
LIST = ["nvidia-smi", "-L"]
UUID = re.compile(r"\bUUID: ((?:GPU|MIG)-[0-9a-fA-F-]+)")
# Statuses of a program that is not there, or that cannot be started.
NO_TOOL = (126, 127)
TIMEOUT_S = 60.0

Container = Dict[str, Any]


def read(api: Optional[Api] = None, inside_too: bool = False) -> Dict[str, Any]:
    """``{cgroup_driver, containers}``: those that run and have GPUs, by name.

    A container is ``{id, name, image, endpoint, root, by, names, allowed, gpus, reason}``. ``by``
    is how it was given them: ``cdi``, ``hook`` (the toolkit's, by a device request), ``runtime``
    (nvidia), ``nodes`` (each device named) or ``privileged``. ``names`` are the devices asked for.
    ``allowed`` is whether systemd itself knows that it may use them; ``None`` where it was not
    asked. ``endpoint`` and ``root`` are of one of ours. ``gpus`` are the UUIDs seen inside;
    ``None`` with the ``reason`` where they were not asked for or could not be had.

    :param api: the daemon; by default this host's.
    :param inside_too: also ask in each container.
    :raises docker_api.Away: the daemon does not answer.
    :raises docker_api.Refused: it refuses to say.
    """
    api = api or Api(timeout_s=TIMEOUT_S)
    found = []
    for listed in api.get("/containers/json") or []:
        try:
            one = _container(api.get("/containers/%s/json" % quoted(str(listed["Id"]))))
        except Refused as problem:
            if problem.status == 404:
                continue  # it has ended since
            raise
        if one is not None:
            found.append(one)
    driver = (api.get("/info") or {}).get("CgroupDriver")
    if driver == "systemd":
        _ask_systemd(found)
    for one in found:
        try:
            one.update(inside(api, one["id"]) if inside_too else {
                "gpus": None, "reason": "nobody asked inside"})
        except Refused as problem:  # it has ended meanwhile, say
            one.update(gpus=None, reason=str(problem))
    return {"cgroup_driver": driver, "containers": sorted(found, key=lambda one: one["name"])}


def inside(api: Api, container: str) -> Dict[str, Any]:
    """``{gpus, reason}``: the UUIDs that NVML gives in a container, or why it gives none.

    ``gpus`` is ``None`` where the container has no nvidia-smi to ask, and ``[]`` with the reason
    where NVML failed.

    :param container: its name or id.
    :raises docker_api.Away: the daemon does not answer.
    :raises docker_api.Refused: it refuses, say because the container does not run.
    """
    made = api.post("/containers/%s/exec" % quoted(container), {
        "Cmd": LIST, "AttachStdout": True, "AttachStderr": True, "Env": ["LC_ALL=C"]})
    where = "/exec/%s" % quoted(str(made["Id"]))
    try:
        said = docker_api.unframed(api.call(
            "POST", where + "/start", {}, {"Detach": False, "Tty": False})).decode(
                "utf-8", "replace")
        status = api.get(where + "/json").get("ExitCode")
    except Refused as problem:
        # What cannot be started an old daemon answers with an error, a new one with a status.
        if "nvidia-smi" not in str(problem):
            raise
        said, status = str(problem), NO_TOOL[1]
    found = UUID.findall(said)
    if status in NO_TOOL:
        there = "executable file not found" not in said and "no such file" not in said
        return {"gpus": None, "reason": " ".join(said.split())[:300] if there and said.strip() else
                "no nvidia-smi in it"}
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [line for line in lines if not line.startswith(("GPU ", "MIG "))]
    if status or wrong or not found:
        return {"gpus": sorted(found),
                "reason": "; ".join(wrong or lines)[:300] or "nvidia-smi ended with %s" % status}
    # Of a card that is cut into slices, the slices are what can be used.
    slices = [uuid for uuid in found if uuid.startswith("MIG-")]
    return {"gpus": sorted(slices or found), "reason": ""}


def restart(api: Api, container: str, stop_s: int = 30) -> None:
    """Start it again: whatever gave it its GPUs does so anew.

    :raises docker_api.Away: the daemon does not answer.
    :raises docker_api.Refused: it cannot be started.
    """
    api.post("/containers/%s/restart" % quoted(container), t=stop_s)


def _container(told: Dict[str, Any]) -> Optional[Container]:
    """One that has GPUs, from what the daemon tells of it."""
    host, config = told["HostConfig"], told["Config"]
    by, names = _given(host, config.get("Env") or [])
    if not by:
        return None
    labels = config.get("Labels") or {}
    return {"id": told["Id"], "name": told["Name"].lstrip("/"), "image": config.get("Image") or "",
            "endpoint": labels.get(ENDPOINT), "root": labels.get(ROOT), "by": by,
            "names": names, "allowed": None, "gpus": None, "reason": ""}


def _given(host: Dict[str, Any], env: List[str]) -> Any:
    """How it was given GPUs and which; nothing where it has none."""
    nodes = sorted(str(one.get("PathOnHost")) for one in host.get("Devices") or []
                   if re.match(r"/dev/nvidia\d", str(one.get("PathOnHost"))))
    visible = next((one[len(VISIBLE):] for one in env if one.startswith(VISIBLE)), "")
    for request in host.get("DeviceRequests") or []:
        ids = [str(one) for one in request.get("DeviceIDs") or []]
        words = [word for words in request.get("Capabilities") or [] for word in words]
        if request.get("Driver") == "cdi" or (ids and all(map(CDI_NAME.fullmatch, ids))):
            return "cdi", ids
        if request.get("Driver") == "nvidia" or "gpu" in words:
            count = request.get("Count") or 0
            names = ids or (["all"] if count == -1 else ["%d of them" % count])
            return ("nodes", nodes) if nodes else ("hook", names)
    if nodes:
        return "nodes", nodes
    if host.get("Runtime") == "nvidia" and visible not in NONE:
        return "runtime", visible.split(",")
    if host.get("Privileged") and visible not in NONE:
        return "privileged", visible.split(",")
    return "", []


def _ask_systemd(containers: List[Container]) -> None:
    """Whether the unit of each container lists the driver's devices.

    A device that was let in behind systemd's back is not listed, and is lost when systemd applies
    its list again.
    """
    for one in containers:
        unit = "docker-%s.scope" % one["id"]
        ran = run(["systemctl", "show", "--property=LoadState,DevicePolicy,DeviceAllow", unit])
        if ran.ok and "LoadState=loaded" in ran.stdout:
            # Where nothing is listed and the policy is none, all is allowed.
            free = "DevicePolicy=auto" in ran.stdout and "/dev/" not in ran.stdout
            one["allowed"] = free or bool(ALLOWED.search(ran.stdout))
