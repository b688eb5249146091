# SPDX-License-Identifier: Apache-2.0
"""Docker's daemon on this host: whether it answers, what runs it, and what it is set to."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any, Dict, Iterable, List, Optional

from .. import docker_api
from ..docker_api import Api, Away, Refused, quoted
from ..planning.network import masked
from ..runner import run
from . import cdi
from .reading import Reader

SETTINGS = "/etc/docker/daemon.json"
DAEMON = "dockerd"
PID_FILES = ("/var/run/docker.pid", "/run/docker.pid")
UNIT = "docker.service"
UNIT_OF = re.compile(r"/([^/]+\.service)$", re.MULTILINE)
CAP_SYS_RESOURCE = 24
PROXIES = {"http-proxy": "HttpProxy", "https-proxy": "HttpsProxy", "no-proxy": "NoProxy"}
# Of a service that systemd starts, a client waits for this long at most.
TIMEOUT_S = 20.0

Seen = Dict[str, Any]


def observe(reader: Reader, images: Iterable[str] = ()) -> Seen:
    """All of it, as one dict; nothing is changed.

    ``state`` is ``running``, ``refused`` (this user may not ask it), ``stopped`` or ``absent``;
    ``why`` is what the daemon or the system said where it is not ``running``.

    :param images: names that are looked for; ``images`` has the id of each, ``None`` where it is
        not there.
    """
    process = daemon(reader)
    seen: Seen = {
        **process,
        "program": cdi.tool(DAEMON) or "",
        "file": _settings_file(process["words"]),
        "root": os.geteuid() == 0,
        "systemd": reader.exists("/run/systemd/system"),
        "nvidia": cdi.read(reader),
        "images": dict.fromkeys(images),
        "why": "",
        "running": [],
    }
    api = Api(timeout_s=TIMEOUT_S)
    try:
        seen["engine"] = engine(api, reader, process["pid"], seen["nvidia"])
        seen["running"] = running(api)
        seen["images"] = {name: image(api, name) for name in seen["images"]}
        seen["state"] = "running"
    except (Away, Refused) as problem:
        seen["engine"] = None
        seen["why"] = str(problem)
        denied = "Permission denied" in seen["why"]
        there = bool(seen["program"] or process["pid"])
        seen["state"] = "refused" if denied else "stopped" if there else "absent"
    if not seen["unit"] and seen["state"] == "stopped" and seen["systemd"]:
        seen["unit"] = usual_unit()
    return seen


def engine(api: Api, reader: Reader, pid: Optional[int], nvidia: Dict[str, Any]) -> Seen:
    """What the daemon says of itself, and what it can give to containers.

    :raises Away: it does not answer.
    :raises Refused: it answers with an error.
    """
    version, info = api.get("/version"), api.get("/info")
    if not isinstance(version, dict) or not isinstance(info, dict):
        raise Away("an answer that is no object")
    runtimes, limits = info.get("Runtimes"), _limits(reader, pid)
    listed = info.get("DiscoveredDevices")
    # An engine tells its folders of specifications only where it uses them; old ones never do.
    uses = bool(info.get("CDISpecDirs"))
    if isinstance(listed, list):
        names = [str(one.get("ID")) for one in listed
                 if isinstance(one, dict) and one.get("Source") == "cdi"]
    else:
        names = ["%s=%s" % (cdi.KIND, name) for name in nvidia["devices"]]
    return {
        "version": str(version.get("Version") or ""),
        "api_version": str(version.get("ApiVersion") or ""),
        "cgroup_driver": info.get("CgroupDriver"),
        "cgroup_version": str(info.get("CgroupVersion") or "") or None,
        "cdi": uses,
        "cdi_devices": sorted(names) if uses else [],
        "nvidia_runtime": "nvidia" in runtimes if isinstance(runtimes, dict) else False,
        "live_restore": info.get("LiveRestoreEnabled") is True,
        # Masked by the engine too; not by all of them.
        "proxies": {name: masked(str(info.get(key) or "")) for name, key in PROXIES.items()},
        "log_driver": str(info.get("LoggingDriver") or ""),
        "nofile_max": limits["nofile"],
        "memlock_unlimited": limits["memlock"],
        "device_nodes": {uuid: [node] for uuid, node in nvidia["nodes"].items()},
    }


def running(api: Api) -> List[str]:
    """The names of the containers that run, sorted. Raises as :func:`engine`."""
    return sorted(str((one.get("Names") or [one.get("Id")])[0]).lstrip("/")
                  for one in api.get("/containers/json") or [])


def image(api: Api, name: str) -> Optional[str]:
    """The id of an image that is there, else ``None``. Raises as :func:`engine`."""
    try:
        return str(api.get("/images/%s/json" % quoted(name))["Id"])
    except Refused as problem:
        if problem.status in (400, 404):
            return None
        raise


def daemon(reader: Reader) -> Seen:
    """The daemon's process: ``{pid, words, unit}``.

    ``words`` is its command line, ``unit`` the unit of systemd that runs it; empty where none does.
    """
    pid = _pid(reader)
    if pid is None:
        return {"pid": None, "words": [], "unit": ""}
    found = UNIT_OF.search(reader.quiet("/proc/%d/cgroup" % pid))
    words = reader.quiet("/proc/%d/cmdline" % pid).split("\0")
    return {"pid": pid, "words": [word for word in words if word],
            "unit": found.group(1) if found else ""}


def _pid(reader: Reader) -> Optional[int]:
    for path in PID_FILES:
        said = reader.quiet(path).strip()
        if said.isdigit() and _is_daemon(reader, int(said)):
            return int(said)
    # Another pid file was named. Daemons of other namespaces are those of containers.
    mine = [int(name) for name in reader.names("/proc") if name.isdigit()
            and _is_daemon(reader, int(name))
            and _namespace(reader, name) == _namespace(reader, "self")]
    return mine[0] if len(mine) == 1 else None


def _is_daemon(reader: Reader, pid: int) -> bool:
    return reader.quiet("/proc/%d/comm" % pid).strip() == DAEMON


def _namespace(reader: Reader, pid: str) -> str:
    try:
        return os.readlink(reader.path("/proc/%s/ns/pid" % pid))
    except OSError:
        return ""


def _settings_file(words: List[str]) -> str:
    """The file that the daemon was told of, or the usual one; links are followed."""
    path = SETTINGS
    for index, word in enumerate(words):
        if word == "--config-file" and index + 1 < len(words):
            path = words[index + 1]
        elif word.startswith("--config-file="):
            path = word.partition("=")[2]
    return path


def _limits(reader: Reader, pid: Optional[int]) -> Dict[str, Any]:
    """What a container may be given at most: open files, and whether locked memory is unlimited.

    What is not known is ``None``. A daemon that may raise limits is bound by the kernel alone.
    """
    if pid is None:
        return {"nofile": None, "memlock": None}
    bits = re.search(r"^CapEff:\s*([0-9a-f]+)$", reader.quiet("/proc/%d/status" % pid), re.M)
    if bits and int(bits.group(1), 16) >> CAP_SYS_RESOURCE & 1:
        most = reader.quiet("/proc/sys/fs/nr_open").strip()
        return {"nofile": int(most) if most.isdigit() else None, "memlock": True}
    said = {line[:26].strip(): line[26:].split() for line in reader.quiet(
        "/proc/%d/limits" % pid).splitlines()}
    files, locked = (said.get(name, [])[1:2] for name in ("Max open files", "Max locked memory"))
    return {"nofile": int(files[0]) if files and files[0].isdigit() else None,
            "memlock": locked == ["unlimited"] if locked else None}


def usual_unit() -> str:
    """The unit that distributions have for the daemon; empty where it is not there."""
    ran = run(["systemctl", "show", "--property=LoadState", UNIT])
    return UNIT if ran.ok and "LoadState=loaded" in ran.stdout else ""


# What is done to it.


def settings(text: Optional[bytes]) -> Dict[str, Any]:
    """The content of ``daemon.json``; no file and an empty one are no settings.

    :raises ValueError: it is no JSON object.
    """
    if text is None or not text.strip():
        return {}
    try:
        found = json.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deep") from problem
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return found


def written(found: Dict[str, Any], before: Optional[bytes]) -> bytes:
    """Settings as a file, indented as the file that they come from."""
    indent = re.search(rb"^([ \t]+)\S", before or b"", re.MULTILINE)
    step = indent.group(1).decode() if indent else "    "
    return (json.dumps(found, indent=step, ensure_ascii=False) + "\n").encode()


def reload(pid: int) -> None:
    """Have the daemon read its file again. :raises OSError: it is gone, or not ours to ask."""
    os.kill(pid, signal.SIGHUP)


def answers(timeout_s: float = 2.0) -> bool:
    """Whether the daemon answers now."""
    try:
        docker_api.Api(timeout_s=timeout_s).call("GET", "/_ping", {})
    except (Away, Refused):
        return False
    return True
