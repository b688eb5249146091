# SPDX-License-Identifier: Apache-2.0
"""What a Jetson says of itself: L4T release, board, SoC and power modes."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional

from .. import jetson
from ..runner import run
from . import devices as common
from . import reading
from .devices import Device
from .reading import Reader

RELEASE = "/etc/nv_tegra_release"
TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")
POWER_MODES = "/etc/nvpmodel.conf"
PACKAGE = ["dpkg-query", "--show", "--showformat=${Version}", "nvidia-l4t-core"]
POWER_MODE = ["nvpmodel", "-q"]
# The container toolkit refuses --gpus here: it finds devices by a list of files (mode csv).
RUNTIME = "nvidia"


def is_one(reader: Reader) -> bool:
    """Whether the host is a Jetson."""
    return reader.exists(RELEASE) or soc(reader) is not None


def soc(reader: Reader) -> Optional[str]:
    """The Tegra SoC of the device tree, as ``tegra234``; ``None`` on any other machine."""
    for tree in TREES:
        for name in reader.quiet(tree + "/compatible").split("\0"):
            found = re.match(r"nvidia,(tegra\d+)$", name)
            if found:
                return found.group(1)
    return None


def read(reader: Reader, rows: Dict[str, List[Dict[str, Any]]]) -> Dict[str, Any]:
    """The facts of a Jetson.

    :param rows: of the catalogs ``jetson_releases`` and ``jetson_chips``.
    """
    chip = soc(reader)
    board = next((text for text in (reader.quiet(tree + "/model").strip("\0") for tree in TREES)
                  if text), None)
    found: Dict[str, Any] = {
        "l4t": _l4t(reader),
        "board": reader.known("jetson.board", board, "the device tree"),
        "soc": reader.known("jetson.soc", chip, "the device tree"),
        "runtime": RUNTIME,
    }
    reader.sources["jetson"] = TREES[0]
    found.update(jetson.describe(found["l4t"], chip, rows))
    for key, of in (("jetpack", "l4t"), ("jetpack_major", "l4t"), ("cuda", "l4t"),
                    ("chip", "soc"), ("capability", "soc")):
        if found[key] is None and found[of] is None:
            reader.missing("jetson." + key, reading.UNASKED, "jetson.%s is not known" % of)
        elif found[key] is None:
            reader.missing("jetson." + key, reading.UNKNOWN, "the catalog says nothing of %s %s" % (
                of, found[of]))
        else:
            reader.sources["jetson." + key] = "the catalog, by " + of
    found.update(_power(reader))
    return found


def gpu(reader: Reader) -> Device:
    """The GPU of a release that has no NVML yet (before JetPack 6): it is there all the same."""
    device: Device = dict.fromkeys(common.KEYS)
    device.update(index=0, unified_memory=True)
    for key in common.KEYS:
        if device[key] is None:
            reader.missing("devices[0]." + key, reading.UNASKED,
                           "this release of Jetson Linux has no NVML that could tell")
    reader.sources["devices"] = TREES[0]
    reader.unread.pop("devices", None)
    return device


def complete(reader: Reader, devices: List[Device], told: Dict[str, Any]) -> None:
    """What the board tells of a GPU and NVML does not."""
    for device in devices:
        device["unified_memory"] = True
        for key, value in (("name", told["chip"]), ("capability", told["capability"])):
            label = "devices[%d].%s" % (device["index"], key)
            if device[key] is None and value is not None:
                device[key] = value
                reader.unread.pop(label, None)
                reader.sources[label] = "the catalog, by soc"


def _l4t(reader: Reader) -> Optional[str]:
    label = "jetson.l4t"
    said = re.match(r"# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)",
                    reader.text(RELEASE, label) or "")
    if said:
        reader.sources[label] = RELEASE
        return "%s.%s" % said.groups()
    ran = run(PACKAGE)
    version = re.match(r"(\d+\.\d+\.\d+)", ran.stdout) if ran.ok else None
    if version:
        reader.unread.pop(label, None)
        reader.sources[label] = "the package nvidia-l4t-core"
        return version.group(1)
    reader.known(label, None, "%s, nor: %s" % (RELEASE, ran.complaint()))
    return None


def _power(reader: Reader) -> Dict[str, Any]:
    """The power mode that is set, and the numbers of those that there are: they differ by board."""
    text = reader.text(POWER_MODES, "jetson.power_modes")
    modes = None if text is None else {
        name: int(number) for number, name in
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text)}
    if text is not None:
        reader.sources["jetson.power_modes"] = POWER_MODES
    ran = run(POWER_MODE, timeout_s=5)
    said = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", ran.stdout) if ran.ok else None
    for key in ("jetson.power_mode", "jetson.power_mode_id"):
        if said:
            reader.sources[key] = " ".join(POWER_MODE)
        else:
            reader.missing(key, reading.ABSENT, ran.complaint())
    return {"power_modes": modes, "power_mode": said.group(1) if said else None,
            "power_mode_id": int(said.group(2)) if said else None}
