# SPDX-License-Identifier: Apache-2.0
"""The machine without its GPUs: processors, memory, disk, system."""

from __future__ import annotations

import os
import platform
from typing import Any, Dict, Optional

from .reading import Reader

MEMINFO = "/proc/meminfo"
CGROUPS = "/sys/fs/cgroup"


def cpu(reader: Reader) -> Dict[str, Any]:
    """Processors that this process may use."""
    model = None
    for line in (reader.text("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            model = value.strip()
            break
    reader.sources["cpu"] = "/proc/cpuinfo"
    return {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "model": reader.known("cpu.model", model, "/proc/cpuinfo"),
    }


def memory(reader: Reader) -> Dict[str, Optional[int]]:
    """RAM and swap in bytes. ``limit_bytes`` is what a cgroup allows, null where none limits."""
    reader.sources["memory"] = MEMINFO
    said = {}
    for line in (reader.text(MEMINFO) or "").splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            said[key] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    found = {
        label: reader.known("memory." + label, said.get(key), MEMINFO)
        for label, key in (
            ("total_bytes", "MemTotal"), ("available_bytes", "MemAvailable"),
            ("free_bytes", "MemFree"), ("swap_bytes", "SwapTotal"),
            ("swap_free_bytes", "SwapFree"))
    }
    found["limit_bytes"] = _limit(reader)
    return found


def _limit(reader: Reader) -> Optional[int]:
    """The tightest memory limit of the control groups that this process is in."""
    folder = ""
    for line in reader.quiet("/proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            folder = path.rstrip("/")
    limits = []
    while True:
        said = reader.quiet(CGROUPS + folder + "/memory.max").strip()
        if said.isdigit():
            limits.append(int(said))
        if not folder:
            break
        folder = folder.rpartition("/")[0]
    if limits:
        reader.sources["memory.limit_bytes"] = CGROUPS
    return min(limits, default=None)


def disk(reader: Reader, path: str) -> Dict[str, Any]:
    """Room in bytes on the file system where a folder is, or will be."""
    there = path
    while not os.path.exists(there):
        there = os.path.dirname(there)
    try:
        room = os.statvfs(there)
    except OSError as problem:
        for key in ("total_bytes", "free_bytes"):
            reader.refused("disk." + key, problem, there)
        return {"path": path, "total_bytes": None, "free_bytes": None}
    reader.sources["disk"] = "statvfs of " + there
    # What an ordinary user may fill; a share is root's.
    return {"path": path, "total_bytes": room.f_blocks * room.f_frsize,
            "free_bytes": room.f_bavail * room.f_frsize}


def system(reader: Reader) -> Dict[str, Any]:
    """Kernel, distribution, C library, and whether systemd is the service manager."""
    release = {}
    for line in (reader.text("/etc/os-release") or "").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            release[key] = value.strip().strip("\"'")
    reader.sources["system"] = "/etc/os-release"
    for key in ("kernel", "libc"):
        reader.sources["system." + key] = "the Python that runs this"
    reader.sources["system.systemd"] = "/run/systemd/system"
    return {
        "kernel": platform.release(),
        "distribution": reader.known("system.distribution", release.get("ID"), "/etc/os-release"),
        "version": reader.known("system.version", release.get("VERSION_ID"), "/etc/os-release"),
        "like": release.get("ID_LIKE", "").split(),
        "libc": reader.known("system.libc", " ".join(platform.libc_ver()).strip() or None,
                             "the Python that runs this"),
        "systemd": os.path.isdir(reader.path("/run/systemd/system")),
    }
