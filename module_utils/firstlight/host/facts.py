# SPDX-License-Identifier: Apache-2.0
"""The facts of a host: its GPUs, and what else decides what can be served on it."""

from __future__ import annotations

import os
import time
from typing import Any, Dict, List, Optional, Tuple

from .. import toolbelt
from . import (
    containers,
    daemons,
    devices,
    driver_files,
    kernel_log,
    machine,
    nvidia_smi,
    nvml,
    pci,
    tegra,
)
from .reading import ABSENT, Reader

SPEC: Dict[str, Any] = {
    "jetson_releases": {"type": "list", "elements": "dict", "default": []},
    "jetson_chips": {"type": "list", "elements": "dict", "default": []},
}
"""Options of the modules that gather, beside the root."""

# Without the toolbelt's bindings or the driver's library, nvidia-smi is asked.
LIBRARY_NOT_FOUND = 12
# What a host with an NVIDIA driver, or a card for one, has.
SIGNS = (driver_files.VERSION, "/dev/nvidiactl")


def observe(root: str, system_root: str = "/",
            catalog: Optional[Dict[str, List[Dict[str, Any]]]] = None
            ) -> Tuple[Dict[str, Any], Optional[float]]:
    """Everything that is known of the host, as one dict, and the seconds that NVML took.

    :param root: ``firstlight_root``.
    :param system_root: where the file system of the host is.
    :param catalog: rows of the catalogs ``jetson_releases`` and ``jetson_chips``.
    """
    reader = Reader(system_root)
    bus = pci.read(reader)
    engine = containers.read(reader)
    memory = machine.memory(reader)
    rows = catalog or {key: [] for key in SPEC}
    jetson = tegra.read(reader, rows) if tegra.is_one(reader) else None
    driver, found, took = _nvidia(reader, root, bus, engine, jetson)
    host_class = _class(reader, jetson, driver, found)
    devices.unified(reader, found, memory)
    for device in found:
        if "devices[%d]" % device["index"] not in reader.unread:
            devices.place(reader, device)
    orphans: Any = []
    services: Dict[str, Any] = {"fabric_manager": None, "persistence_daemon": None}
    if driver is not None:
        orphans = kernel_log.share_out(reader, found, kernel_log.xids(reader))
        services = daemons.read(reader, len(bus.nvswitches))
    return {
        "class": host_class,
        "driver": driver,
        "devices": found,
        "orphan_xids": orphans,
        "nvswitches": len(bus.nvswitches),
        **services,
        "containers": engine,
        "cpu": machine.cpu(reader),
        "memory": memory,
        "disk": machine.disk(reader, os.path.join(root, "models")),
        "jetson": jetson,
        "other_cards": bus.others,
        "system": machine.system(reader),
        "sources": reader.sources,
        "unread": reader.unread,
    }, took


def _nvidia(reader: Reader, root: str, bus: Any, engine: Any, jetson: Any) -> Any:
    """Driver, devices, and the seconds that NVML took; no driver where nothing is NVIDIA's."""
    sign = next((name for name in SIGNS if reader.exists(name)), None) or next(
        ("%s/%s" % (pci.FOLDER, one) for one in bus.nvidia), None)
    read, took, missing = _by_nvml(reader, root)
    if read is None and sign is None and jetson is None:
        reader.unread.pop("nvml", None)  # there is nothing that it could have told
        return None, [], None
    reader.sources["class"] = sign or nvml.SOURCE
    if read is None and missing:
        read = _by_nvidia_smi(reader, engine)
    driver, found = read or driver_files.read(reader, bus.nvidia)
    driver["kernel_module"] = driver_files.kernel_module(reader)
    driver_files.complete(reader, found, bus.nvidia)
    if jetson is not None:
        found = found or [tegra.gpu(reader)]
        tegra.complete(reader, found, jetson)
    return driver, found, took


def _by_nvml(reader: Reader, root: str) -> Any:
    """Driver and devices, the seconds it took, and whether NVML is missing altogether."""
    toolbelt.reach(root)
    try:
        import pynvml  # type: ignore[import-untyped,unused-ignore]
    except ImportError as problem:
        reader.missing("nvml", ABSENT, "pynvml cannot be imported: %s" % problem)
        return None, None, True
    started = time.monotonic()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        nvml.Asker(reader, pynvml).refused("nvml", problem.value)
        return None, None, problem.value == LIBRARY_NOT_FOUND
    try:
        read = nvml.read(reader, pynvml)
    finally:
        pynvml.nvmlShutdown()
    return read, round(time.monotonic() - started, 4), False


def _by_nvidia_smi(reader: Reader, engine: Any) -> Any:
    """Driver and devices by the host's nvidia-smi, else by one in a container."""
    tool = nvidia_smi.on_host()
    read = nvidia_smi.read(reader, tool) if tool else None
    if tool is None:
        reader.missing("nvidia-smi", ABSENT, "no nvidia-smi in PATH")
    if read is None:
        tool = containers.nvidia_smi_in_container(reader, engine)
        read = nvidia_smi.read(reader, tool) if tool else None
    return read


def _class(reader: Reader, jetson: Any, driver: Any, found: Any) -> str:
    if jetson is not None:
        reader.sources["class"] = tegra.RELEASE if reader.exists(tegra.RELEASE) else tegra.TREES[0]
        return "jetson"
    if driver is None:
        return "cpu"
    return "unified" if any(one["unified_memory"] for one in found) else "nvidia"
