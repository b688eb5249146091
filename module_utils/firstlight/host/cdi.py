# SPDX-License-Identifier: Apache-2.0
"""The Container Device Interface's files for NVIDIA devices, and what their tools are."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from .reading import Reader

FOLDERS = ("/etc/cdi", "/var/run/cdi")
"""Where an engine looks; of two files that name the same device, the later folder's counts."""

KIND = "nvidia.com/gpu"
REFRESH = "nvidia-cdi-refresh.service"
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
TOOLS = {"ctk": "nvidia-ctk", "runtime": "nvidia-container-runtime",
         "hook": "nvidia-container-runtime-hook"}
# A service's own search path may lack these.
MORE_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
GPUS = "/proc/driver/nvidia/gpus"
MINOR = re.compile(r"^Device Minor:\s*(\d+)\s*$", re.MULTILINE)
UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)\s*$", re.MULTILINE)
FIELD = re.compile(r"^(\s*(?:- )?)(kind|name|path|hostPath):\s*(.*?)\s*$")
DEVICES = re.compile(r"^devices:\s*$")


class Spec(NamedTuple):
    """One file.

    :param devices: name to the host's paths that a container with that device gets.
    :param common: the host's paths that a container with any of them gets.
    """

    kind: str
    devices: Dict[str, List[str]]
    common: List[str]


def read(reader: Reader) -> Dict[str, Any]:
    """What there is for containers with GPUs.

    ``{ctk, runtime, hook}`` are paths of the toolkit's programs (empty: not there), ``refresh``
    whether its service writes the specification, ``devices`` the names that specifications give,
    each with ``{file, nodes, gone}``: the file that counts, the device nodes it names, and paths
    that this host does not have; ``unreadable`` are files that could not be understood; ``nodes``
    are the driver's own device nodes by UUID.
    """
    devices: Dict[str, Dict[str, Any]] = {}
    unreadable: List[str] = []
    for folder in FOLDERS:
        for name in reader.names(folder):
            if not name.endswith((".yaml", ".json")):
                continue
            path = "%s/%s" % (folder, name)
            spec = parsed(reader.quiet(path))
            if spec is None:
                unreadable.append(path)
            elif spec.kind == KIND:
                devices.update(_told(reader, path, spec))
    return {
        **{key: tool(name) or "" for key, name in TOOLS.items()},
        "refresh": reader.exists("/run/systemd/system") and any(
            reader.exists("%s/%s" % (folder, REFRESH)) for folder in UNIT_FOLDERS),
        "devices": devices,
        "unreadable": unreadable,
        "nodes": nodes(reader),
    }


def tool(name: str) -> Optional[str]:
    """The path of a program, wherever distributions put those of root."""
    found = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join([*found, *MORE_PATH]))


def nodes(reader: Reader) -> Dict[str, str]:
    """Device nodes by UUID, as the driver numbers them."""
    found = {}
    for name in reader.names(GPUS):
        said = reader.quiet("%s/%s/information" % (GPUS, name))
        uuid, minor = UUID.search(said), MINOR.search(said)
        if uuid and minor:
            found[uuid.group(1)] = "/dev/nvidia" + minor.group(1)
    return found


def _told(reader: Reader, path: str, spec: Spec) -> Dict[str, Dict[str, Any]]:
    gone = _gone(reader, spec.common)
    return {name: {"file": path, "nodes": [one for one in needed if one.startswith("/dev/")],
                   "gone": gone + _gone(reader, needed)}
            for name, needed in spec.devices.items()}


def _gone(reader: Reader, needed: Iterable[str]) -> List[str]:
    return sorted({one for one in needed if not reader.exists(one)})


def parsed(text: str) -> Optional[Spec]:
    """A specification, or ``None`` for what is none: JSON, or YAML as the toolkit writes it.

    Of YAML only what is asked about is read, line by line: the host has no parser for it.
    """
    try:
        return _of_json(json.loads(text))
    except (ValueError, RecursionError):
        pass
    except (TypeError, KeyError, AttributeError):
        return None
    return _of_yaml(text)


def _of_json(told: Any) -> Spec:
    return Spec(str(told["kind"]),
                {str(one["name"]): _paths(one.get("containerEdits") or {})
                 for one in told.get("devices") or []},
                _paths(told.get("containerEdits") or {}))


def _paths(edits: Dict[str, Any]) -> List[str]:
    """The host's paths of one set of edits: nodes, mounts, programs that are run."""
    return [str(one.get("hostPath") or one.get("path"))
            for key in ("deviceNodes", "mounts", "hooks") for one in edits.get(key) or []
            if one.get("hostPath") or one.get("path")]


def _of_yaml(text: str) -> Optional[Spec]:
    kind = ""
    common: List[str] = []
    items: List[Dict[str, Any]] = []
    here, indent, within, nodes_own = common, "", False, False
    for line in text.splitlines():
        if line[:1] not in (" ", "-", ""):
            within, here = bool(DEVICES.match(line)), common
        elif within and line.lstrip().startswith("- "):
            before = line[:len(line) - len(line.lstrip())]
            if not items or before == indent:
                indent, here = before, []
                items.append({"name": "", "paths": here})
        field = FIELD.match(line)
        if field is None:
            continue
        begins, key, value = field.group(1), field.group(2), field.group(3).strip("\"'")
        if key == "kind" and not begins:
            kind = value
        elif key == "name" and here is not common:
            items[-1]["name"] = items[-1]["name"] or value
        # After the host's path of a node, the one that the container has for it.
        elif key == "hostPath" or (key == "path" and not nodes_own):
            here.append(value)
        nodes_own = key == "hostPath" and begins.endswith("- ")
    if not kind:
        return None
    return Spec(kind, {one["name"]: one["paths"] for one in items if one["name"]}, common)
