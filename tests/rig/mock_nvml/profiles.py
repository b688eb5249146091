# SPDX-License-Identifier: Apache-2.0
"""Profiles of machines: what may stand in one, what is filled in, and changes to one.

A key that a device does not have is "not supported" there, so a key that nobody knows is refused.
``defaults`` holds what the devices have in common; a device adds to it, or takes away with null.
``based_on`` names another profile, whose devices are then changed by their place.
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import uuid
from typing import Any

import yaml

from . import files
from .building import functions

FOLDER = pathlib.Path(__file__).resolve().parent / "profiles"
# UUIDs that were not recorded are made from the name of the profile and the place in it.
MADE_UP = uuid.UUID("5f1e2c1c-6d0a-4f6e-9a55-3c3f5a8b6e01")

ERRORS = {"*": int}
UNFAILING = {"nvmlErrorString", "nvmlShutdown"}
MEMORY = {"total": int, "reserved": int, "used": int}
PROCESS = {"pid": int, "bytes": int, "gpu_instance": int, "compute_instance": int,
           "command": str}
SLICE = {"uuid": str, "name": str, "memory": MEMORY, "gpu_instance": int, "compute_instance": int}
DEVICE = {
    "name": str, "uuid": str, "serial": str, "minor": int,
    # As NVML writes it: 00000000:1B:00.0. The vendor's half of the ids is the lower one.
    "bus_id": str, "pci_device_id": int, "pci_subsystem_id": int,
    "architecture": int, "capability": [int], "brand": int, "virtualization": int,
    "vbios": str, "gsp_firmware": str,
    # free = total - reserved - used
    "memory": MEMORY,
    "utilisation": {"gpu": int, "memory": int},
    "temperature": int, "power_mw": int, "performance_state": int,
    "clocks_event_reasons": int, "persistence": int, "compute_mode": int,
    "mig": {"current": int, "pending": int, "max_slices": int, "slices": [SLICE]},
    "ecc": dict.fromkeys(("current", "pending", "corrected_volatile", "uncorrected_volatile",
                          "corrected_aggregate", "uncorrected_aggregate"), int),
    "remapped_rows": dict.fromkeys(("correctable", "uncorrectable", "pending", "failed"), int),
    "retired_pages_pending": int, "recovery_action": int,
    # bytes: null is "not available"; command appears in the files of the host
    "processes": {"compute": [PROCESS], "graphics": [PROCESS], "mps": [PROCESS]},
    # What NVML calls a node is one that the GPU's own memory is; `node` is the one it is near to,
    # of `numa_cpus`, and gives both affinities. Without it the device is near to all CPUs.
    "numa_node": int, "node": int, "cpu_affinity": [int], "memory_affinity": [int],
    # remote_type: 0 a GPU, 1 an NPU, 2 a switch
    "nvlink": {"links": int, "active": int, "remote_type": int},
    # Places of the peers, or `all` for all others.
    "p2p_nvlink": ([int], str),
    "fabric": {"state": int, "status": int, "clique_id": int, "cluster_uuid": str,
               "health_mask": int, "health_summary": int},
    # By function; "*" is every function but nvmlDeviceGetHandleByIndex_v2.
    "errors": ERRORS,
}
HOST = {
    "architecture": str, "distribution": str, "cpu": str, "cores": int, "uptime_s": int,
    # The CPUs of each NUMA node, as the kernel lists them.
    "numa_cpus": [str],
    "memory_kib": {"total": int, "free": int, "available": int, "swap": int, "swap_free": int},
    "open_kernel_module": bool, "kernel_module_version": str,
    "nvswitches": [str], "nvswitch_device": str,
    "device_tree": {"model": str, "compatible": [str]},
}
PROFILE = {
    "describes": str, "source": str,
    "driver_version": str, "nvml_version": str, "cuda_driver_version": int,
    "init": int, "cuda": {"init": int}, "errors": ERRORS,
    "host": HOST, "defaults": DEVICE, "devices": [DEVICE],
    # What the kernel's log says: of a device by its place, or of an address.
    "xids": [{"device": int, "bus_id": str, "code": int, "text": str, "at_s": int}],
    # Null takes away what would be made from the rest.
    "files": {"*": str},
}


class Wrong(Exception):
    """A profile says what no profile can say."""


def names() -> list[str]:
    """The names of all profiles."""
    return sorted(path.stem for path in FOLDER.glob("*.yml"))


class Profile(dict):
    """A profile that is complete.

    :ivar name: its name.
    :ivar told: what it says itself, to be changed and completed again.
    """

    def __init__(self, told: dict[str, Any], name: str) -> None:
        super().__init__(_complete(told, name))
        self.name = name
        self.told = told


def load(name: str) -> Profile:
    """A profile, judged and complete: its devices, and the files that its host has."""
    return Profile(_read(name), name)


def changed(profile: Profile, **changes: Any) -> Profile:
    """A profile with changes.

    What is a mapping is changed key by key, at any depth; null takes a key away. Devices are
    changed by their place: ``devices={1: {"memory": {"used": 2**30}}}``.
    """
    return Profile(_changed(profile.told, changes, profile.name), profile.name)


def write(profile: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a complete profile for the libraries; it appears whole or not at all."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {key: value for key, value in profile.items() if key != "files"}
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(json.dumps(told, indent=1), encoding="utf-8")
    os.replace(unfinished, path)


def _read(name: str) -> dict[str, Any]:
    """What a profile says, and where it says nothing what the one says that it is based on."""
    with open(FOLDER / (name + ".yml"), encoding="utf-8") as file:
        told = yaml.safe_load(file)
    base = told.pop("based_on", None)
    return _changed(_read(base), told, name) if base else told


def _changed(told: dict[str, Any], changes: dict[str, Any], name: str) -> dict[str, Any]:
    """What a profile says, changed; the devices by their place."""
    changes = dict(changes)
    by_place = changes.pop("devices", {})
    after = _merged(told, changes)
    if isinstance(by_place, list):
        after["devices"] = by_place
        return after
    for place, change in by_place.items():
        if place not in range(len(after.get("devices", []))):
            raise Wrong("%s.devices: found no device %r to change" % (name, place))
        after["devices"][place] = _merged(after["devices"][place], change)
    return after


def _merged(under: Any, over: Any) -> Any:
    """What ``over`` says, and where it says nothing what ``under`` says."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    return {key: _merged(under.get(key), over[key]) if key in over else copy.deepcopy(under[key])
            for key in {**under, **over}}


def _without_nulls(value: Any) -> Any:
    """Mappings in mappings without the keys that were taken away."""
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


def _complete(told: dict[str, Any], name: str) -> dict[str, Any]:
    """Fill in what a profile leaves to us, and refuse what is wrong in it."""
    _judge(told, PROFILE, name)
    profile = _merged({"host": {"architecture": "x86_64", "uptime_s": 100000}, "devices": []}, told)
    defaults = profile.pop("defaults", {})
    profile["devices"] = [
        _device(profile, _without_nulls(_merged(defaults, own)), name, place)
        for place, own in enumerate(profile["devices"])]
    profile = _without_nulls(profile)
    _judge_whole(profile, name)
    _judge_devices(profile, name)
    profile["files"] = _without_nulls({**files.of(profile), **(told.get("files") or {})})
    return profile


def _device(profile: dict[str, Any], device: dict[str, Any], name: str, place: int,
            ) -> dict[str, Any]:
    """A device with what follows from its place and from its host."""
    host = profile["host"]
    made_up = uuid.uuid5(MADE_UP, "%s/%d" % (name, place))
    filled = {"uuid": "GPU-%s" % made_up, "minor": place, **device}
    if isinstance(filled.get("p2p_nvlink"), str):
        if filled["p2p_nvlink"] != "all":
            raise Wrong("%s.devices[%d].p2p_nvlink: found %r, wanted all or places"
                        % (name, place, filled["p2p_nvlink"]))
        filled["p2p_nvlink"] = [other for other in range(len(profile["devices"])) if other != place]
    if "node" in device:
        nodes = host.get("numa_cpus", [])
        if device["node"] not in range(len(nodes)):
            raise Wrong("%s.devices[%d].node: found %d, wanted a place in host.numa_cpus"
                        % (name, place, device["node"]))
        filled.setdefault("cpu_affinity", files.words(nodes[device["node"]]))
        filled.setdefault("memory_affinity", files.words(str(device["node"])))
    return filled


def _judge(value: Any, shape: Any, where: str) -> None:
    """Refuse a value that has not this shape: a type, a list of a shape, a mapping of shapes."""
    shapes = shape if isinstance(shape, tuple) else (shape,)
    if value is None:
        return  # null takes a key away
    for one in shapes:
        if isinstance(one, dict) and isinstance(value, dict):
            for key, inner in value.items():
                if one is ERRORS:
                    known = functions() - UNFAILING | {"*"}
                elif "*" in one:
                    known = {key}
                else:
                    known = set(one)
                if key not in known:
                    raise Wrong("%s: found the key %r, which means nothing there" % (where, key))
                _judge(inner, one.get(key, one.get("*")), "%s.%s" % (where, key))
            return
        if isinstance(one, list) and isinstance(value, list):
            for place, inner in enumerate(value):
                _judge(inner, one[0], "%s[%d]" % (where, place))
            return
        # A bool is an int to Python, and not to us.
        if isinstance(one, type) and type(value) is one:
            return
    raise Wrong("%s: found %r, wanted %s" % (where, value, " or ".join(
        getattr(one, "__name__", "a " + type(one).__name__) for one in shapes)))


def _judge_whole(profile: dict[str, Any], name: str) -> None:
    """Refuse a profile that lacks what each has, or from which no files can be made."""
    for key in ("describes", "source"):
        if not profile.get(key):
            raise Wrong("%s: found no %s" % (name, key))
    distribution = profile["host"].get("distribution")
    if distribution and distribution not in files.OS_RELEASE:
        raise Wrong("%s.host.distribution: found %r, wanted one of %s" % (
            name, distribution, ", ".join(files.OS_RELEASE)))
    for place, event in enumerate(profile.get("xids", [])):
        if "bus_id" not in event and event.get("device") not in range(len(profile["devices"])):
            raise Wrong("%s.xids[%d]: found neither a device nor a bus_id" % (name, place))


def _judge_devices(profile: dict[str, Any], name: str) -> None:
    """Refuse devices that cannot be beside each other."""
    devices = profile["devices"]
    for key in ("uuid", "bus_id", "minor"):
        values = [device[key] for device in devices if key in device]
        if len(set(values)) < len(values):
            raise Wrong("%s.devices: found two of the same %s" % (name, key))
    for place, device in enumerate(devices):
        where = "%s.devices[%d]" % (name, place)
        for peer in device.get("p2p_nvlink", []):
            if peer not in range(len(devices)) or peer == place:
                raise Wrong("%s.p2p_nvlink: found no other device %r" % (where, peer))
            if place not in devices[peer].get("p2p_nvlink", []):
                raise Wrong("%s.p2p_nvlink: device %d does not say the same" % (where, peer))
        if len(device.get("capability", (0, 0))) != 2:
            raise Wrong("%s.capability: found %r, wanted two numbers" % (
                where, device["capability"]))
        memory = device.get("memory", {"total": 0})
        if memory.get("total", -1) < memory.get("reserved", 0) + memory.get("used", 0):
            raise Wrong("%s.memory: found less in total than is taken" % where)
        if "slices" in device.get("mig", {}) and not device["mig"]["current"]:
            raise Wrong("%s.mig: found slices, and MIG is off" % where)
