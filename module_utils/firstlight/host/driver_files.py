# SPDX-License-Identifier: Apache-2.0
"""What the NVIDIA driver tells everyone in /proc: its version, UUID and name of each device."""

from __future__ import annotations

import glob
import os
import re
from typing import Any, Dict, List, Optional, Tuple

from . import devices as common
from . import reading
from .devices import Device
from .reading import Reader

FOLDER = "/proc/driver/nvidia"
VERSION = FOLDER + "/version"
TOLD = {"uuid": "GPU UUID", "name": "Model", "bus_id": "Bus Location"}


def kernel_module(reader: Reader) -> Optional[str]:
    """The version of the loaded kernel module."""
    label = "driver.kernel_module"
    text = reader.text(VERSION, label) or ""
    found = re.search(r"NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    if found is None:
        reader.known(label, None, VERSION)
        return None
    reader.sources[label] = VERSION
    return found.group(1)


def read(reader: Reader, cards: List[str]) -> Tuple[Dict[str, Any], List[Device]]:
    """Driver and devices, as far as they can be known without asking the driver's library.

    :param cards: addresses of NVIDIA's cards on the PCI bus: there, whatever the driver says.
    """
    reader.sources["driver"] = reader.sources["devices"] = FOLDER
    # Whatever else is known of it, this is what runs.
    driver: Dict[str, Any] = {"version": kernel_module(reader), "cuda": None, "nvml": None}
    if driver["version"] is None:
        reader.unread["driver.version"] = dict(reader.unread["driver.kernel_module"])
    for key in ("cuda", "nvml"):
        reader.missing("driver." + key, reading.UNASKED, "only NVML tells it")
    found: List[Device] = []
    pattern = reader.path(FOLDER + "/gpus/*/information")
    for index, name in enumerate(sorted(glob.glob(pattern))):
        where = "/" + os.path.relpath(name, reader.path("/"))
        found.append(_device(reader, index, _said(reader.quiet(where)), where))
    known = {one["bus_id"] for one in found}
    for bus_id in cards:
        if bus_id not in known:
            where = "/sys/bus/pci/devices/" + bus_id
            found.append(_device(reader, len(found), {"Bus Location": bus_id}, where))
    if not found:
        reader.missing("devices", reading.ABSENT, "nothing matches %s/gpus/*/information" % FOLDER)
    return driver, found


def complete(reader: Reader, devices: List[Device], cards: List[str]) -> None:
    """Address, UUID and name of devices that do not tell them any more: a lost one is named too.

    NVML's order is that of the bus, so where as many addresses as devices are left over, they
    belong to each other.

    :param cards: addresses of NVIDIA's cards on the PCI bus.
    """
    mute = [one for one in devices if one["bus_id"] is None]
    files = {bus_id: "%s/gpus/%s/information" % (FOLDER, name)
             for name in reader.names(FOLDER + "/gpus")
             for bus_id in [common.bus_id(name)] if bus_id}
    left = sorted({*files, *cards} - {one["bus_id"] for one in devices})
    found = dict(zip((one["index"] for one in mute), left if len(left) == len(mute) else ()))
    for device in devices:
        bus_id = device["bus_id"] or found.get(device["index"])
        if bus_id is None:
            continue
        where = files.get(bus_id, "/sys/bus/pci/devices/" + bus_id)
        said = dict(_said(reader.quiet(where)), **{TOLD["bus_id"]: bus_id})
        for key, name in TOLD.items():
            label = "devices[%d].%s" % (device["index"], key)
            if device[key] is None and said.get(name):
                device[key] = said[name]
                reader.sources[label] = where
                reader.unread.pop(label, None)


def _said(text: str) -> Dict[str, str]:
    """What a file of the driver tells; for what it does not know yet it has question marks."""
    return {key: value.strip() for key, _, value in
            (line.partition(":") for line in text.splitlines()) if "?" not in value}


def _device(reader: Reader, index: int, said: Dict[str, str], where: str) -> Device:
    device: Device = dict.fromkeys(common.KEYS)
    device["index"] = index
    for key in common.KEYS[1:]:
        label = "devices[%d].%s" % (index, key)
        if key in TOLD:
            value = said.get(TOLD[key]) or None
            device[key] = reader.known(
                label, common.bus_id(value) if value and key == "bus_id" else value, where)
        else:
            reader.missing(label, reading.UNASKED, "only NVML tells it")
    return device
