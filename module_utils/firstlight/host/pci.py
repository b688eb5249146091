# SPDX-License-Identifier: Apache-2.0
"""The cards on the PCI bus, whoever made them and whether or not a driver is loaded."""

from __future__ import annotations

from typing import Dict, List, NamedTuple

from .reading import Reader

FOLDER = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
# Whose cards are named, though nothing here serves on them.
OTHERS = {"0x1002": "AMD", "0x8086": "Intel"}
# PCI base classes: display controllers and processing accelerators.
CARDS = ("0x03", "0x12")
BRIDGE = "0x0680"


class Bus(NamedTuple):
    """What is on the bus: addresses of NVIDIA's cards and NVSwitches, cards of others."""

    nvidia: List[str]
    nvswitches: List[str]
    others: List[Dict[str, str]]


def read(reader: Reader) -> Bus:
    """Look at every device of the bus once."""
    bus = Bus([], [], [])
    for name in reader.names(FOLDER):
        folder = "%s/%s/" % (FOLDER, name)
        kind, vendor = reader.quiet(folder + "class"), reader.quiet(folder + "vendor")
        if kind.startswith(CARDS) and vendor == NVIDIA:
            bus.nvidia.append(name)
        elif kind.startswith(BRIDGE) and vendor == NVIDIA:
            bus.nvswitches.append(name)
        elif kind.startswith(CARDS) and vendor in OTHERS:
            bus.others.append({"vendor": OTHERS[vendor], "bus_id": name,
                               "device": reader.quiet(folder + "device")})
    return bus
