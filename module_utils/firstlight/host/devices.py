# SPDX-License-Identifier: Apache-2.0
"""What is known of a device whatever told it: its keys, its names for things, its peers."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional, Set

from .. import processes
from . import reading
from .reading import Reader

Device = Dict[str, Any]

KEYS = (
    "index", "uuid", "name", "bus_id", "architecture", "capability", "unified_memory",
    "memory_total_bytes", "memory_free_bytes", "memory_reserved_bytes", "holders",
    "utilisation_percent", "compute_mode", "persistence", "temperature_c", "mig", "ecc",
    "remapped_rows", "retired_pages_pending", "throttle_reasons", "recovery_action", "numa_node",
    "cpu_list", "nvlink", "fabric", "xids",
)
"""Every device has all of these; what could not be read is ``None``, with its reason."""

FABRIC_STATES = ("not_supported", "not_started", "in_progress", "completed")
"""States of a GPU in an NVSwitch fabric, as NVML numbers them."""


def bus_id(said: str) -> Optional[str]:
    """A PCI address as sysfs writes it, ``0000:2b:00.0``; NVML writes eight digits of domain.

    ``None`` for what is no address.
    """
    found = re.match(r"([0-9a-f]{4,8}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])$", said.strip().lower())
    return "%04x:%s" % (int(found.group(1), 16), found.group(2)) if found else None


def cliques(peers: List[Set[int]]) -> List[int]:
    """The number of the clique of each device: in a clique all are peers of each other.

    A device joins the first clique whose members are all its peers, so the cliques are those of
    the order that the driver gives: boards are wired in blocks of neighbours.

    :param peers: for each device the indexes of its peers.
    """
    found: List[Set[int]] = []
    numbers: List[int] = []
    for index, own in enumerate(peers):
        for number, members in enumerate(found):
            if members <= own:
                members.add(index)
                numbers.append(number)
                break
        else:
            numbers.append(len(found))
            found.append({index})
    return numbers


def link(reader: Reader, devices: List[Device], peers: List[Optional[Set[int]]]) -> None:
    """Give each device that has an ``nvlink`` its peers by UUID and its clique.

    :param peers: indexes of the peers of each device, ``None`` where they could not be read.
    """
    numbers = cliques([own or set() for own in peers])
    for place, device in enumerate(devices):
        if device["nvlink"] is None:
            continue
        own = peers[place]
        device["nvlink"]["peers"] = None if own is None else [
            devices[one]["uuid"] for one in sorted(own)]
        device["nvlink"]["clique"] = None if own is None else numbers[place]
        for key in ("peers", "clique"):
            reader.known("devices[%d].nvlink.%s" % (device["index"], key), device["nvlink"][key],
                         "what tells the other devices")


def place(reader: Reader, device: Device) -> None:
    """NUMA node and CPU list of a device, from its folder in sysfs."""
    label = "devices[%d]." % device["index"]
    if device["bus_id"] is None:
        for key in ("numa_node", "cpu_list"):
            reader.missing(label + key, reading.UNASKED, "the PCI address is not known")
        return
    folder = "/sys/bus/pci/devices/%s/" % device["bus_id"]
    node = (reader.text(folder + "numa_node", label + "numa_node") or "").strip()
    if node.lstrip("-").isdigit() and int(node) >= 0:
        device["numa_node"] = int(node)
        reader.sources[label + "numa_node"] = folder + "numa_node"
    elif node:
        reader.missing(label + "numa_node", reading.UNKNOWN,
                       "%snuma_node says %s: the kernel was told of no node" % (folder, node))
    cpus = (reader.text(folder + "local_cpulist", label + "cpu_list") or "").strip()
    if cpus:
        device["cpu_list"] = cpus
        reader.sources[label + "cpu_list"] = folder + "local_cpulist"
    else:
        reader.known(label + "cpu_list", None, folder + "local_cpulist")


def holder(reader: Reader, label: str, pid: Optional[int], size: Optional[int], kind: str,
           instance: Optional[int]) -> Dict[str, Any]:
    """A process that holds memory of a device, named as far as this user may see it.

    :param label: of the holder in the facts, as ``devices[0].holders[0]``.
    :param size: bytes; ``None`` where the driver does not tell.
    :param kind: ``compute``, ``graphics`` or ``mps``.
    :param instance: the GPU instance (MIG) it runs in; ``None`` where the device has none.
    """
    proc = reader.path("/proc")
    command = None if pid is None else processes.command(pid, proc)
    user = None if pid is None else processes.user_of(pid, proc)
    if command is None or user is None:
        there = os.path.exists(os.path.join(proc, str(pid)))
        why = ("its process is another user's or the kernel's" if there
               else "no process %s is seen from here: it runs in another container, or is gone"
               % pid)
        for key, value in (("command", command), ("user", user)):
            if value is None:
                reader.missing("%s.%s" % (label, key), reading.ABSENT, why)
    if size is None:
        reader.missing(label + ".bytes", reading.UNKNOWN,
                       "the driver does not tell the memory of pid %s" % pid)
    return {"pid": pid, "command": command, "user": user, "bytes": size, "kind": kind,
            "gpu_instance": instance}


def unified(reader: Reader, devices: List[Device], memory: Dict[str, Optional[int]]) -> None:
    """Devices without memory of their own use the host's.

    Only where no device has any: one that keeps its memory to itself among others that tell
    theirs is not of that kind.
    """
    answered = [one for one in devices if one["unified_memory"] is not None]
    if not all(one["unified_memory"] for one in answered):
        for device in answered:
            device["unified_memory"] = False
    figures = {"memory_total_bytes": memory["total_bytes"],
               "memory_free_bytes": memory["available_bytes"]}
    for device in devices:
        if not device["unified_memory"]:
            continue
        label = "devices[%d]." % device["index"]
        for key, value in figures.items():
            said = reader.unread.pop(label + key, {}).get("reason")
            device[key] = reader.known(label + key, value, "/proc/meminfo")
            reader.sources[label + key] = "/proc/meminfo" + (" (%s)" % said if said else "")
