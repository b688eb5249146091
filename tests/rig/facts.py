# SPDX-License-Identifier: Apache-2.0
"""Facts of hosts as ``gpu_facts`` returns them: a healthy H200, and changes to it.

``device(index=1, temperature_c=95)`` is a device, ``host(devices=[...])`` the facts of its host. A
change whose value is a mapping changes those keys only. ``unread(facts, label, code)`` makes a
figure null, with its reason.
"""

from __future__ import annotations

import copy
import re

GIB = 2**30
TOTAL = 150754820096
RESERVED = 644939776


def changed(facts, changes):
    """A copy of the facts with the changes in it."""
    made = copy.deepcopy(facts)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(made.get(key), dict)
        made[key] = changed(made[key], value) if both else copy.deepcopy(value)
    return made


def uuid(index):
    """The UUID of the device with this index."""
    return "GPU-00000000-0000-4000-8000-%012d" % index


def device(index=0, **changes):
    """An idle H200 on an NVSwitch board."""
    return changed({
        "index": index, "uuid": uuid(index), "name": "NVIDIA H200",
        "bus_id": "0000:%02x:00.0" % (index + 6), "architecture": "hopper", "capability": "9.0",
        "unified_memory": False, "memory_total_bytes": TOTAL,
        "memory_free_bytes": TOTAL - RESERVED, "memory_reserved_bytes": RESERVED, "holders": [],
        "utilisation_percent": 0, "compute_mode": "default", "persistence": True,
        "temperature_c": 37, "mig": {"enabled": False, "pending": False, "slices": []},
        "ecc": {"enabled": True, "pending": True, "corrected_volatile": 0,
                "uncorrected_volatile": 0, "corrected_aggregate": 0, "uncorrected_aggregate": 0},
        "remapped_rows": {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": False},
        "retired_pages_pending": None, "throttle_reasons": ["gpu_idle"], "recovery_action": "none",
        "numa_node": 0, "cpu_list": "0-15",
        "nvlink": {"links": 18, "active": 18, "to_switch": True, "peers": [], "clique": 0},
        "fabric": {"state": "completed", "status": "success", "clique_id": 0,
                   "cluster_uuid": "00000000-0000-0000-0000-000000000000"},
        "xids": [],
    }, changes)


def holder(pid, count, **changes):
    """A process that holds that much memory of a device."""
    return changed({"pid": pid, "command": "python3 serve.py", "user": "root", "bytes": count,
                    "kind": "compute", "gpu_instance": None}, changes)


def piece(number, free=40 * GIB, total=40 * GIB):
    """A MIG slice."""
    return {"uuid": "MIG-%d" % number, "name": "NVIDIA H200 MIG 2g.35gb", "gpu_instance": number,
            "compute_instance": 0, "memory_total_bytes": total, "memory_free_bytes": free}


def unopened(index, code="nvml-15"):
    """A device that cannot be opened, and its reason."""
    made = dict.fromkeys(device())
    made["index"] = index
    return made, {"devices[%d]" % index: reason(code)}


def reason(code):
    """Why a figure is null."""
    number = code.rpartition("-")[2]
    return {"code": code, "reason": "NVML error %s" % number if number.isdigit() else code}


def host(devices=None, **changes):
    """A host with two healthy H200s that are NVLink peers."""
    if devices is None:
        devices = [device(0, nvlink={"peers": [uuid(1)]}), device(1, nvlink={"peers": [uuid(0)]})]
    return changed({
        "class": "nvidia", "driver": {"version": "580.159.04", "cuda": "13.0",
                                      "nvml": "13.580.159.04", "kernel_module": "580.159.04"},
        "devices": devices, "orphan_xids": [], "nvswitches": 4,
        "fabric_manager": {"state": "active", "enabled": True, "version": "580.159.04"},
        "persistence_daemon": {"state": "active", "enabled": True},
        "containers": {"engine": "docker", "version": "28.2.2", "api_version": "1.50",
                       "cgroup_driver": "systemd", "cgroup_version": "2",
                       "default_runtime": "runc", "nvidia_runtime": True, "cdi_devices": []},
        "cpu": {"architecture": "x86_64", "cores": 16, "model": "a CPU"},
        "memory": {"total_bytes": 200 * GIB, "available_bytes": 180 * GIB,
                   "free_bytes": 100 * GIB, "swap_bytes": 0, "swap_free_bytes": 0,
                   "limit_bytes": None},
        "disk": {"path": "/var/lib/firstlight", "total_bytes": 900 * GIB,
                 "free_bytes": 500 * GIB},
        "jetson": None, "other_cards": [],
        "system": {"kernel": "6.1.0", "distribution": "debian", "version": "12", "like": [],
                   "libc": "glibc 2.36", "systemd": True},
        "sources": {"devices": "nvml", "driver": "nvml", "memory": "/proc/meminfo"},
        "unread": {"devices[%d].retired_pages_pending" % one["index"]: reason("nvml-3")
                   for one in devices if one["retired_pages_pending"] is None},
    }, changes)


def cpu_host(**changes):
    """A host without a GPU."""
    none = {"class": "cpu", "driver": None, "fabric_manager": None, "persistence_daemon": None,
            "nvswitches": 0, "containers": {"nvidia_runtime": False}}
    return changed(changed(host([]), none), changes)


def jetson_host(**changes):
    """An Orin NX with nothing to improve; its NVML tells little."""
    gpu = device(0, name="Orin (nvgpu)", capability="8.7", architecture="ampere",
                 unified_memory=True, memory_total_bytes=16 * GIB, memory_free_bytes=12 * GIB,
                 memory_reserved_bytes=None, holders=None, ecc=None, remapped_rows=None, mig=None,
                 nvlink=None, fabric=None, persistence=None, throttle_reasons=None, xids=[])
    facts = host([gpu], **{"class": "jetson"})
    for figure in [name for name, value in gpu.items() if value is None]:
        facts["unread"]["devices[0]." + figure] = reason("nvml-3")
    return changed(changed(facts, {
        "driver": {"version": "540.4.0", "kernel_module": "540.4.0"}, "nvswitches": 0,
        "fabric_manager": None,
        "memory": {"total_bytes": 16 * GIB, "available_bytes": 12 * GIB, "free_bytes": 11 * GIB,
                   "swap_bytes": 8 * GIB},
        "jetson": {"l4t": "36.4.3", "jetpack": "6.2", "jetpack_major": 6, "cuda": "12.6",
                   "board": "NVIDIA Jetson Orin NX", "soc": "tegra234", "chip": "Orin",
                   "power_mode": "MAXN", "power_mode_id": 0, "power_modes": {"MAXN": 0, "15W": 2},
                   "runtime": "nvidia"},
    }), changes)


def unread(facts, label, code="nvml-999"):
    """The facts with this figure null, and why."""
    made = copy.deepcopy(facts)
    inner = made
    *way, last = [int(part) if part.isdigit() else part
                  for part in re.findall(r"[^.\[\]]+", label)]
    for part in way:
        inner = inner[part]
    inner[last] = None
    made["unread"] = {**made["unread"], label: reason(code)}
    return made
