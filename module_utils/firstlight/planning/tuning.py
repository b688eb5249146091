# SPDX-License-Identifier: Apache-2.0
"""What each safe remedy for a host's health takes on this host, decided from its facts."""

from __future__ import annotations

import os.path
import re
from typing import Any, Dict, Iterable, List, Optional, Tuple

from ..findings import Finding, finding

Facts = Dict[str, Any]
Remedy = Dict[str, Any]

FABRIC_MANAGER = "nvidia-fabricmanager.service"
PERSISTENCE_DAEMON = "nvidia-persistenced.service"
# Codes of `unread` that mean: this hardware or driver has no such thing.
HAS_NONE = ("nvml-3", "nvml-13")
# Codes of cards that are lost or wait for a reset: no remedy here reaches them, and what helps the
# others must not be taken back for them.
OUT_OF_REACH = ("nvml-15", "nvml-16")
# A file system that is full stops more than it helps: this share of it stays free.
SHARE_KEPT_FREE = 0.1


def tuning_plan(facts: Facts, remedies: List[str], swap_bytes: int, swap_path: str,
                power_mode: str) -> Dict[str, Remedy]:
    """What each remedy takes here.

    Every remedy has ``act`` (whether it is asked for and there is something to do), ``left`` (in
    words, what it brings that is not so yet; of facts that are read after it nothing is left),
    ``settled`` (whether waiting brings no more) and ``refusals`` (findings: why it cannot be done
    as things are).

    :param facts: ``gpu_host`` of the module ``gpu_facts``.
    :param remedies: names of the remedies asked for.
    :param swap_bytes: size of the swap file.
    :param swap_path: where it goes.
    :param power_mode: name of the power mode wanted; empty for the largest that the board has.
    """
    remedied = {
        "fabric_manager": _fabric_manager(facts),
        "persistence": _persistence(facts),
        "page_cache": _page_cache(facts),
        "swap": _swap(facts, int(swap_bytes), swap_path),
        "power_mode": _power_mode(facts, power_mode),
    }
    for name, one in remedied.items():
        unit = one.get("unit")
        one["act"] = name in remedies and bool(one["left"] or unit and not unit["enabled"])
        one["settled"] = not one["left"] or bool(unit and unit["down"])
        if not one["act"]:
            one["refusals"] = []
    return remedied


def largest_mode(modes: Iterable[str]) -> Optional[str]:
    """The power mode of a Jetson that allows most, by its name; ``None`` where no name tells.

    ``MAXN_SUPER`` before ``MAXN`` before the most watts; of the same watts all cores before the
    most cores. Their numbers say nothing: they differ by board.
    """
    ranked = [(rank, name) for name in sorted(modes) for rank in [_rank(name)] if rank]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _rank(name: str) -> Optional[Tuple[int, int, int]]:
    watts = re.search(r"(\d+)W", name)
    cores = re.search(r"(\d+)CORE", name)
    if name.startswith("MAXN"):
        return (2 if "SUPER" in name else 1, 0, 0)
    if watts is None:
        return None
    # Where no number of cores is named, none is switched off.
    return (0, int(watts.group(1)), int(cores.group(1)) if cores else 2**31)


def _unit(name: str, daemon: Optional[Dict[str, Any]]) -> Optional[Remedy]:
    """A unit as it was found; ``None`` where it is not installed.

    ``down`` is one that systemd starts no more by itself: waiting for it brings nothing.
    """
    if daemon is None or daemon["state"] in (None, "not-found"):
        return None
    return {"name": name, "active": daemon["state"] == "active",
            "down": daemon["state"] in ("inactive", "failed"), "enabled": daemon["enabled"]}


def _unit_left(unit: Optional[Remedy]) -> List[str]:
    # Not whether it starts at boot: systemd tells that of a unit that runs as it was at its start.
    return [] if unit is None or unit["active"] else ["%s does not run" % unit["name"]]


def _said(device: Dict[str, Any]) -> str:
    return "GPU %s (%s)" % (device["index"], device["uuid"] or "its UUID is not known")


def _reason(facts: Facts, label: str) -> Dict[str, str]:
    """Why a fact is null: the entry of the fact, or of the nearest of what it is part of."""
    unread: Dict[str, Dict[str, str]] = facts["unread"]
    while label:
        if label in unread:
            return unread[label]
        label = label.rpartition(".")[0]
    return {"code": "unasked", "reason": "no reason was kept"}


def _fabric_manager(facts: Facts) -> Remedy:
    daemon = facts["fabric_manager"]
    if daemon is None:
        return {"left": [], "refusals": [], "unit": None}
    unit = _unit(FABRIC_MANAGER, daemon)
    left = ["%s is not installed" % FABRIC_MANAGER] if unit is None else _unit_left(unit)
    for device in facts["devices"]:
        fabric = device["fabric"]
        if fabric is None:
            why = _reason(facts, "devices[%s].fabric" % device["index"])
            if why["code"] not in HAS_NONE + OUT_OF_REACH:
                left.append("%s: its fabric could not be read: %s" % (
                    _said(device), why["reason"]))
        elif fabric["state"] not in ("completed", "not_supported"):
            left.append("%s: its fabric is %s" % (_said(device), fabric["state"]))
        elif fabric["state"] == "completed" and fabric["status"] not in (None, "success"):
            left.append("%s: its fabric ended with %s" % (_said(device), fabric["status"]))
    return {"left": left, "refusals": _wrong_fabric_manager(facts, unit), "unit": unit}


def _wrong_fabric_manager(facts: Facts, unit: Optional[Remedy]) -> List[Finding]:
    driver = (facts["driver"] or {}).get("version")
    version = facts["fabric_manager"].get("version")
    if unit is not None and version is not None and version == driver:
        return []
    branch = str(driver or "").partition(".")[0]
    if unit is None:
        found = "it is not installed"
    elif version is None or driver is None:
        label = "fabric_manager.version" if version is None else "driver.version"
        found = "%s could not be read: %s" % (label, _reason(facts, label)["reason"])
    else:
        found = "it is of version %s" % version
    return [finding(
        "fabric-manager-version",
        FABRIC_MANAGER,
        found,
        "exactly the version of the driver%s: it ends at once where they differ" % (
            ", " + driver if driver else ""),
        "install %s of exactly the driver's version, then run this again; it belongs to the "
        "driver, and drivers are not ours to change" % (
            "nvidia-fabricmanager-" + branch if branch else "the fabric manager"),
        needs_root=True,
        source="https://docs.nvidia.com/datacenter/tesla/fabric-manager-user-guide/",
    )]


def _persistence(facts: Facts) -> Remedy:
    unit = _unit(PERSISTENCE_DAEMON, facts["persistence_daemon"])
    left = []
    for device in facts["devices"]:
        if device["persistence"]:
            continue
        if device["persistence"] is False:
            left.append("%s: persistence is off" % _said(device))
            continue
        why = _reason(facts, "devices[%s].persistence" % device["index"])
        if why["code"] not in HAS_NONE + OUT_OF_REACH:
            left.append("%s: persistence could not be read: %s" % (_said(device), why["reason"]))
    # The daemon matters where there is a device that it keeps.
    return {"left": (_unit_left(unit) if facts["devices"] else []) + left, "refusals": [],
            "unit": unit}


def _page_cache(facts: Facts) -> Remedy:
    # Where the GPU has memory of its own, what the page cache holds is not in its way.
    return {"left": ["clean pages are cached"] if facts["class"] in ("jetson", "unified") else [],
            "refusals": []}


def _swap(facts: Facts, size: int, path: str) -> Remedy:
    return {"left": ["there is no swap"] if facts["memory"]["swap_bytes"] == 0 else [],
            "refusals": _no_room(facts["disk"], size, path), "bytes": size, "path": path}


def _no_room(disk: Dict[str, Any], size: int, path: str) -> List[Finding]:
    # What is known is how much is free where models go, so the file goes beside them.
    beside = os.path.dirname(disk["path"])
    if not re.fullmatch(r"/[\w./-]+", path) or os.path.commonpath(
            [beside, os.path.normpath(path)]) != beside:
        return [finding(
            "swap-path", "host_tuning_swap_path", path or "nothing",
            "a path under %s, of letters, digits and ._/- (fstab takes no others)" % beside,
            "change host_tuning_swap_path: only the free space there was read")]
    free, total = disk["free_bytes"], disk["total_bytes"]
    if free is None or total is None:
        return [finding(
            "swap-room", "host_tuning_swap_bytes", "the free space under %s could not be read"
            % beside, "room for %d bytes" % size, "make %s readable" % beside)]
    most = max(0, int(free - SHARE_KEPT_FREE * total))
    if 0 < size <= most:
        return []
    return [finding(
        "swap-room", "host_tuning_swap_bytes", "%d bytes asked for, %d of %d free under %s" % (
            size, free, total, beside),
        "more than 0, and at most %d, so that a tenth stays free" % most,
        "change host_tuning_swap_bytes, or remove what is not needed under %s" % beside)]


def _power_mode(facts: Facts, asked: str) -> Remedy:
    jetson = facts["jetson"]
    if jetson is None:
        return {"left": [], "refusals": [], "name": None, "id": None, "before": None}
    modes: Dict[str, int] = jetson["power_modes"] or {}
    name = asked or largest_mode(modes)
    refusals = []
    if name not in modes:
        found = ("no mode: %s" % _reason(facts, "jetson.power_modes")["reason"]
                 if jetson["power_modes"] is None else "only %s" % (", ".join(modes) or "none"))
        refusals = [finding(
            "power-mode", "host_tuning_power_mode", "this board has " + found,
            asked or "a mode whose name tells that it is the largest",
            "change host_tuning_power_mode to the name of a mode of this board")]
    number = modes.get(name or "")
    left = []
    if number is None or number != jetson["power_mode_id"]:
        left = ["the power mode is %s" % (
            jetson["power_mode"] or "not known: " + _reason(facts, "jetson.power_mode")["reason"])]
    return {"left": left, "refusals": refusals, "name": name, "id": number,
            "before": jetson["power_mode_id"]}
