# SPDX-License-Identifier: Apache-2.0
"""The container engine of a host, and what it can give to a container of its GPUs."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
from typing import Any, Dict, List, Optional

from ..runner import run
from . import reading
from .nvidia_smi import Tool
from .reading import Reader

SOCKETS = ("/run/docker.sock", "/var/run/docker.sock")
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")
# A daemon that is busy starting containers answers late; one that hangs, never.
TIMEOUT_S = 5.0
MAX_BODY = 4 * 2**20
KEYS = ("engine", "version", "api_version", "cgroup_driver", "cgroup_version", "default_runtime",
        "nvidia_runtime", "cdi_devices")
# Images in which nvidia-smi has what it needs: the toolkit brings the tool, glibc must be there.
LIKELY = ("nvidia", "cuda", "vllm", "llama")


class _Unix(http.client.HTTPConnection):
    """HTTP over the daemon's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def read(reader: Reader) -> Dict[str, Any]:
    """The engine: Docker where it answers, else Podman, else null with the reason."""
    found: Dict[str, Any] = dict.fromkeys(KEYS)
    path = next((one for one in SOCKETS if reader.exists(one)), None)
    told: Dict[str, Any] = {}
    if path:
        found.update(_docker(reader, path, told))
    elif shutil.which("podman"):
        found.update(_podman(reader))
    else:
        reader.missing("containers", reading.ABSENT,
                       "no Docker socket in %s, and no podman in PATH" % " or ".join(SOCKETS))
    found["cdi_devices"] = _cdi_devices(reader, told)
    return found


def _docker(reader: Reader, path: str, told: Dict[str, Any]) -> Dict[str, Any]:
    try:
        version, info = _get(reader.path(path), "/version"), _get(reader.path(path), "/info")
    except OSError as problem:
        reader.refused("containers", problem, path)
        return {}
    except (http.client.HTTPException, ValueError) as problem:
        reader.missing("containers", reading.UNKNOWN, "%s: %s" % (path, problem))
        return {}
    told.update(info)
    reader.sources["containers"] = path
    answers = {
        "version": version.get("Version"),
        "api_version": version.get("ApiVersion"),
        "cgroup_driver": info.get("CgroupDriver"),
        "cgroup_version": info.get("CgroupVersion"),
        "default_runtime": info.get("DefaultRuntime"),
    }
    runtimes = info.get("Runtimes")
    return dict(
        {key: reader.known("containers." + key, value, "the daemon's answer")
         for key, value in answers.items()},
        engine="docker",
        nvidia_runtime=reader.known(
            "containers.nvidia_runtime",
            "nvidia" in runtimes if isinstance(runtimes, dict) else None, "the daemon's answer"))


def _get(path: str, target: str) -> Dict[str, Any]:
    """An object that the daemon answers with.

    :raises OSError: it does not answer.
    :raises ValueError: it answers something else.
    """
    connection = _Unix(path)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read(MAX_BODY)
    finally:
        connection.close()
    answer = json.loads(body)
    if response.status != 200 or not isinstance(answer, dict):
        raise ValueError("HTTP %d to GET %s" % (response.status, target))
    return answer


def _podman(reader: Reader) -> Dict[str, Any]:
    ran = run(["podman", "info", "--format", "json"], timeout_s=TIMEOUT_S)
    try:
        info = json.loads(ran.stdout if ran.ok else "{}")
        host, version = info["host"], info["version"]
        answers = {
            "version": version.get("Version"),
            "api_version": version.get("APIVersion"),
            "cgroup_driver": host.get("cgroupManager"),
            "cgroup_version": str(host.get("cgroupVersion", "")).lstrip("v") or None,
            "default_runtime": host.get("ociRuntime", {}).get("name"),
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        reader.missing("containers", reading.UNKNOWN, ran.complaint()[:500])
        return {}
    reader.sources["containers"] = "podman info"
    # It needs none: it gives devices by CDI.
    return dict(
        {key: reader.known("containers." + key, value, "the answer of podman info")
         for key, value in answers.items()},
        engine="podman", nvidia_runtime=False)


def _cdi_devices(reader: Reader, told: Dict[str, Any]) -> Optional[List[str]]:
    """The names under which the Container Device Interface knows devices."""
    label = "containers.cdi_devices"
    files = ["%s/%s" % (folder, name) for folder in CDI_FOLDERS for name in reader.names(folder)
             if name.endswith((".yaml", ".json"))]
    if isinstance(told.get("DiscoveredDevices"), list):
        reader.sources[label] = reader.sources["containers"]
        return sorted(str(one.get("ID")) for one in told["DiscoveredDevices"]
                      if isinstance(one, dict) and one.get("Source") == "cdi")
    if not files:
        reader.sources[label] = " and ".join(CDI_FOLDERS)
        reader.unread.pop(label, None)
        return []
    ran = run(["nvidia-ctk", "cdi", "list"])
    if ran.ok:
        reader.sources[label] = "nvidia-ctk cdi list"
        # Its log lines go to standard error; what has a `=` is a device.
        return sorted(line.strip() for line in ran.stdout.splitlines() if "=" in line)
    reader.missing(label, reading.UNASKED, "there is %s, and %s" % (
        ", ".join(files), ran.complaint()))
    return None


def nvidia_smi_in_container(reader: Reader, containers: Dict[str, Any]) -> Optional[Tool]:
    """A way to run nvidia-smi in an image that is on the host already; none is ever pulled."""
    label = "nvidia-smi in a container"
    engine = containers["engine"]
    client = shutil.which(engine) if engine else None
    if client is None:
        reader.missing(label, reading.ABSENT, "no container engine with a client")
        return None
    cdi = [one for one in containers["cdi_devices"] or [] if one == "nvidia.com/gpu=all"]
    if containers["nvidia_runtime"]:
        devices = ["--runtime=nvidia", "--env=NVIDIA_VISIBLE_DEVICES=all",
                   "--env=NVIDIA_DRIVER_CAPABILITIES=utility"]
    elif cdi:
        devices = ["--device=" + cdi[0]]
    else:
        reader.missing(label, reading.ABSENT, "%s has neither a runtime nvidia nor CDI devices: "
                       "the NVIDIA container toolkit is not set up" % engine)
        return None
    image = _image(reader, label, client)
    if image is None:
        return None
    name = "firstlight-nvidia-smi-%d" % os.getpid()
    return Tool(
        # In a PID namespace of its own it would see no process that holds memory.
        [client, "run", "--rm", "--pull=never", "--network=none", "--pid=host", "--name=" + name,
         *devices,
         "--entrypoint=nvidia-smi", image],
        "nvidia-smi in a container of %s" % image,
        [client, "rm", "--force", name])


def _image(reader: Reader, label: str, client: str) -> Optional[str]:
    """The likeliest of the images that are there."""
    ran = run([client, "image", "ls", "--format={{.Repository}}:{{.Tag}}"])
    names = sorted(name for name in ran.stdout.split() if "<none>" not in name)
    if not ran.ok or not names:
        reader.missing(label, reading.ABSENT, "no image on the host: %s" % ran.complaint())
        return None
    return max(names, key=lambda name: sum(word in name for word in LIKELY))
