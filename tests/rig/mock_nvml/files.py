# SPDX-License-Identifier: Apache-2.0
"""The files that a host of a profile has beside its NVML: what /proc, /sys and /dev would say."""

from __future__ import annotations

import os
import pathlib
from typing import Any

NVIDIA = 0x10DE
DISPLAY_3D, BRIDGE = "0x030200", "0x068000"
# Drivers log them as they load, seconds after boot.
LOADED_AT_S = 4
OS_RELEASE = {
    "debian-12": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\n'
                 'VERSION_ID="12"\nVERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\n',
    "ubuntu-22.04": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"\n'
                    'VERSION="22.04.5 LTS (Jammy Jellyfish)"\nVERSION_CODENAME=jammy\nID=ubuntu\n'
                    'ID_LIKE=debian\n',
    "ubuntu-24.04": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\n'
                    'VERSION="24.04.3 LTS (Noble Numbat)"\nVERSION_CODENAME=noble\nID=ubuntu\n'
                    'ID_LIKE=debian\n',
}


def of(profile: dict[str, Any]) -> dict[str, str]:
    """The files that follow from a profile, by their paths."""
    host = profile["host"]
    made = {"/proc/uptime": "%d.00 %d.00\n" % (host["uptime_s"], host["uptime_s"])}
    if "distribution" in host:
        made["/etc/os-release"] = OS_RELEASE[host["distribution"]]
    if "memory_kib" in host:
        made["/proc/meminfo"] = _meminfo(host["memory_kib"])
    if "cores" in host:
        made["/proc/cpuinfo"] = _cpuinfo(host)
    if "device_tree" in host:
        # /proc/device-tree is a link to the other folder on a real host.
        for folder in ("/sys/firmware/devicetree/base", "/proc/device-tree"):
            made[folder + "/model"] = host["device_tree"]["model"] + "\0"
            made[folder + "/compatible"] = "".join(
                name + "\0" for name in host["device_tree"]["compatible"])
    version = host.get("kernel_module_version", profile.get("driver_version"))
    if version:
        made.update(_driver(profile, version))
    for device in profile["devices"]:
        if "bus_id" in device:
            made.update(_pci(device, host))
        for process in (one for kind in device.get("processes", {}).values() for one in kind):
            if "command" in process:
                made["/proc/%d/cmdline" % process["pid"]] = (
                    process["command"].replace(" ", "\0") + "\0")
    for address in host.get("nvswitches", []):
        folder = "/sys/bus/pci/devices/%s/" % address
        made.update({folder + "vendor": "0x%04x\n" % NVIDIA, folder + "class": BRIDGE + "\n",
                     folder + "device": host["nvswitch_device"] + "\n"})
    made["/dev/kmsg"] = _kernel_log(profile, version)
    return made


def write_files(profile: dict[str, Any], root: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Write the files of a complete profile under a folder that plays a root file system."""
    written = []
    for name, content in profile["files"].items():
        path = pathlib.Path(root) / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
        written.append(path)
    return written


def words(cpus: str) -> list[int]:
    """A list of CPUs as the kernel writes it (``0-3,8``), as words of 64 bits."""
    numbers = [number for part in cpus.split(",") for number in range(
        int(part.split("-")[0]), int(part.split("-")[-1]) + 1)]
    found = [0] * (max(numbers) // 64 + 1)
    for number in numbers:
        found[number // 64] |= 1 << number % 64
    return found


def address(bus_id: str) -> str:
    """A PCI address as the kernel writes it, from NVML's: four digits of domain, lower case."""
    domain, _, rest = bus_id.lower().partition(":")
    return "%04x:%s" % (int(domain, 16), rest)


def _meminfo(memory: dict[str, int]) -> str:
    return "".join("%-16s%8d kB\n" % (name + ":", memory.get(key, 0)) for name, key in (
        ("MemTotal", "total"), ("MemFree", "free"), ("MemAvailable", "available"),
        ("SwapTotal", "swap"), ("SwapFree", "swap_free")))


def _cpuinfo(host: dict[str, Any]) -> str:
    if host["architecture"] == "aarch64":
        # Arm has no name for the model there.
        lines = "BogoMIPS\t: 62.50\nFeatures\t: fp asimd evtstrm\nCPU implementer\t: 0x41\n"
    else:
        lines = "model name\t: %s\n" % host["cpu"]
    return "".join("processor\t: %d\n%s\n" % (core, lines) for core in range(host["cores"]))


def _driver(profile: dict[str, Any], version: str) -> dict[str, str]:
    host = profile["host"]
    if host.get("open_kernel_module"):
        module = "NVIDIA UNIX Open Kernel Module for %s  %s  Release Build  (builder@host)" % (
            host["architecture"], version)
    else:
        module = "NVIDIA UNIX %s Kernel Module  %s  Mon Jan  1 00:00:00 UTC 2024" % (
            host["architecture"], version)
    made = {"/proc/driver/nvidia/version": "NVRM version: %s\nGCC version:  gcc version 12.2.0\n"
                                           % module,
            "/sys/module/nvidia/version": version + "\n", "/dev/nvidiactl": ""}
    for device in profile["devices"]:
        made["/dev/nvidia%d" % device["minor"]] = ""
        if "bus_id" in device:
            at = address(device["bus_id"])
            made["/proc/driver/nvidia/gpus/%s/information" % at] = (
                "Model: \t\t %s\nIRQ:   \t\t 41\nGPU UUID: \t %s\nVideo BIOS: \t %s\n"
                "Bus Type: \t PCIe\nDMA Size: \t 52 bits\nDMA Mask: \t 0xfffffffffffff\n"
                "Bus Location: \t %s\nDevice Minor: \t %d\nGPU Firmware: \t %s\n"
                "GPU Excluded:\t No\n" % (
                    device["name"], device["uuid"], device.get("vbios", "??.??.??.??.??"), at,
                    device["minor"], device.get("gsp_firmware", "N/A")))
    return made


def _pci(device: dict[str, Any], host: dict[str, Any]) -> dict[str, str]:
    folder = "/sys/bus/pci/devices/%s/" % address(device["bus_id"])
    node = device.get("node", -1)
    cpus = host["numa_cpus"][node] if node >= 0 else "0-%d" % (host["cores"] - 1)
    return {folder + "vendor": "0x%04x\n" % NVIDIA, folder + "class": DISPLAY_3D + "\n",
            folder + "device": "0x%04x\n" % (device["pci_device_id"] >> 16),
            folder + "numa_node": "%d\n" % node, folder + "local_cpulist": cpus + "\n"}


def _kernel_log(profile: dict[str, Any], version: str | None) -> str:
    """Records as /dev/kmsg gives them: priority, number, microseconds since boot, a flag."""
    events = [(0, 5, "Linux version 6.1.0-28 (builder@host)")]
    if version:
        events.append((LOADED_AT_S, 4, "NVRM: loading NVIDIA UNIX Kernel Module  " + version))
    for event in profile.get("xids", []):
        at = event.get("bus_id") or address(profile["devices"][event["device"]]["bus_id"])
        events.append((event["at_s"], 4, "NVRM: Xid (PCI:%s): %d, %s" % (
            at.rpartition(".")[0] or at, event["code"], event["text"])))
    return "".join("%d,%d,%d,-;%s\n" % (priority, number, at_s * 1000000, text)
                   for number, (at_s, priority, text) in enumerate(sorted(events)))
