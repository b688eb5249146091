# SPDX-License-Identifier: Apache-2.0
"""The facts of a host that does not exist, from the short keys of its profile."""

from __future__ import annotations

import difflib
import uuid
from typing import Any, Dict, List, Optional, Tuple

from .. import jetson
from .profile_keys import Profile, shown

Facts = Dict[str, Any]
Row = Dict[str, Any]

MIB, GIB = 2**20, 2**30
MAX_CARDS = 64
# Larger than any machine or model: a slip of the unit.
MAX_MEMORY_GIB = 2**16
MAX_CORES = 2**16
ARCHITECTURES = ("x86_64", "aarch64")
# What an idle system takes of the RAM; of a small one an eighth.
SYSTEM_BYTES = GIB
# Links of an NVLink card. Plans and health only ask whether there are any.
LINKS = 12
BUSY_COMMAND = "a process of somebody else"

GPU_KEYS = ("card", "count", "nvlink", "mig")
MIG_KEYS = ("card", "profile", "count")
BUSY_KEYS = ("index", "bytes", "command")

UNSUPPORTED = {"code": "nvml-3", "reason": "NVML error 3: Not Supported"}
UNSAID = {"code": "absent", "reason": "the profile does not tell it"}
SOURCE = "the profile"
MODELS_FOLDER = "/var/lib/firstlight/models"
# Figures that GPUs with the host's memory do not tell, those of Tegra in addition, and those of
# Tegra before Thor, whose driver is another.
UNREAD_UNIFIED = ("memory_reserved_bytes", "mig", "ecc", "remapped_rows", "retired_pages_pending",
                  "nvlink", "fabric")
UNREAD_TEGRA = ("utilisation_percent", "temperature_c", "throttle_reasons", "recovery_action")
UNREAD_NVGPU = ("bus_id", "compute_mode", "persistence", "holders")
NVGPU = "Orin (nvgpu)"
# Cards that retire pages; later ones remap rows.
WITH_PAGES = ("volta", "turing")


def from_keys(made: Profile, given: Dict[Any, Any]) -> Optional[Facts]:
    """The facts; ``None`` where what they need is wrong or missing."""
    memory = None
    if "memory_gib" in given:
        memory = made.amount("memory_gib", given["memory_gib"], MAX_MEMORY_GIB)
    elif not made.findings or given:
        # What is no mapping was told already.
        made.bad("missing", "memory_gib", "nothing", "the RAM of the host in GiB")
    card, devices, unread = _devices(made, given)
    tegra = _jetson(made, given, card)
    driver = made.text("driver", given["driver"]) if "driver" in given else None
    if card is None and "driver" in given and "gpus" not in given:
        made.bad("without-gpus", "driver", "a driver, and no gpus", "gpus, or no driver")
    elif card is not None and tegra is None and "driver" not in given:
        made.bad("missing", "driver", "nothing", "the version of the NVIDIA driver")
    architecture = ARCHITECTURES[1] if card and card["unified"] else ARCHITECTURES[0]
    if "architecture" in given:
        named = made.choice("architecture", given["architecture"], ARCHITECTURES)
        if named and card and card["unified"] and named != architecture:
            made.bad("contradiction", "architecture", "%s, with %s" % (named, card["name"]),
                     architecture)
        architecture = named or architecture
    docker = made.text("docker", given["docker"]) if "docker" in given else None
    cores = made.count("cores", given["cores"], MAX_CORES) if "cores" in given else None
    if made.findings or memory is None:
        return None
    kind = "cpu" if card is None else "jetson" if tegra else (
        "unified" if card["unified"] else "nvidia")
    facts: Facts = {
        "class": kind,
        "driver": None if card is None else {
            "version": driver, "cuda": None, "nvml": None, "kernel_module": driver},
        "devices": devices, "orphan_xids": [], "nvswitches": 0, "fabric_manager": None,
        "persistence_daemon": None if card is None else {"state": "active", "enabled": True},
        "containers": _containers(docker, card is not None),
        "cpu": {"architecture": architecture, "cores": cores, "model": None},
        "memory": _memory(int(memory * GIB), tegra is not None),
        "disk": {"path": MODELS_FOLDER, "total_bytes": None, "free_bytes": None},
        "jetson": tegra, "other_cards": [],
        "system": {"kernel": None, "distribution": None, "version": None, "like": [],
                   "libc": None, "systemd": True},
        "sources": dict.fromkeys(
            ("class", "driver", "devices", "containers", "cpu", "memory", "disk", "jetson",
             "system"), SOURCE),
        "unread": dict(unread, **dict.fromkeys(
            ("cpu.model", "disk", "system", "cpu.cores", "containers", "driver", "jetson.jetpack",
             "jetson.cuda"), UNSAID)),
    }
    _share(facts)
    facts["unread"] = {label: reason for label, reason in facts["unread"].items()
                       if _is_null(facts, label)}
    return facts


def _is_null(facts: Facts, label: str) -> bool:
    """Whether a figure that would have this reason has none, or something under it."""
    if label.startswith("devices["):
        return True
    value: Any = facts
    for key in label.split("."):
        value = value.get(key) if isinstance(value, dict) else None
        if value is None and key == label.partition(".")[0]:
            # The whole place does not exist on such a host.
            return False
    return value is None or (isinstance(value, dict) and None in value.values())


def _memory(total: int, zram: bool) -> Dict[str, Any]:
    free = total - min(SYSTEM_BYTES, total // 8)
    # Jetson Linux compresses half of the memory in zram.
    swap = total // 2 if zram else 0
    return {"total_bytes": total, "available_bytes": free, "free_bytes": free,
            "swap_bytes": swap, "swap_free_bytes": swap, "limit_bytes": None}


def _containers(docker: Optional[str], with_gpu: bool) -> Dict[str, Any]:
    if docker is None:
        return {"engine": None, "version": None, "api_version": None, "cgroup_driver": None,
                "cgroup_version": None, "default_runtime": None, "nvidia_runtime": None,
                "cdi_devices": []}
    return {"engine": "docker", "version": docker, "api_version": None,
            "cgroup_driver": "systemd", "cgroup_version": "2", "default_runtime": "runc",
            "nvidia_runtime": with_gpu, "cdi_devices": []}


def _share(facts: Facts) -> None:
    """GPUs with the host's memory tell the host's; what their processes hold is gone from it."""
    for device in facts["devices"]:
        if device["unified_memory"]:
            held = sum(one["bytes"] for one in device["holders"] or [])
            memory = facts["memory"]
            memory["available_bytes"] = max(0, memory["available_bytes"] - held)
            memory["free_bytes"] = memory["available_bytes"]
            device["memory_total_bytes"] = memory["total_bytes"]
            device["memory_free_bytes"] = memory["available_bytes"]
            if device["name"] == NVGPU:
                # Its driver does not name who holds what.
                device["holders"] = None


def _jetson(made: Profile, given: Dict[Any, Any], card: Optional[Row]) -> Optional[Dict[str, Any]]:
    chips = [row for row in made.catalog["jetson_chips"]
             if card and card["unified"] and row["capability"] == card["capability"]]
    if "l4t" not in given:
        if chips:
            made.bad("missing", "l4t", "nothing", "the release of Jetson Linux, as 36.4.3")
        return None
    release = made.text("l4t", given["l4t"])
    if not chips:
        if card or "gpus" not in given:
            made.bad("contradiction", "l4t", "a release of Jetson Linux, and %s" % (
                card["name"] if card else "no gpus"), "a Jetson in gpus.card, or no l4t")
        return None
    soc = chips[0]["soc"]
    known = jetson.describe(release, soc, {
        key: made.catalog[key] for key in ("jetson_releases", "jetson_chips")})
    return dict(known, l4t=release, board=card["name"] if card else None, soc=soc,
                power_mode="MAXN", power_mode_id=0, power_modes={"MAXN": 0}, runtime="nvidia")


# GPUs.


def _devices(made: Profile, given: Dict[Any, Any]
             ) -> Tuple[Optional[Row], List[Dict[str, Any]], Dict[str, Any]]:
    """The card, the devices as facts have them, and why figures of them are null."""
    if "gpus" not in given:
        if "busy" in given:
            made.bad("without-gpus", "busy", "busy GPUs, and no gpus", "gpus, or no busy")
        return None, [], {}
    gpus = made.mapping("gpus", given["gpus"], GPU_KEYS)
    if gpus is None:
        return None, [], {}
    if "mig" in gpus:
        return _mig(made, given, gpus)
    card = _card(made, "gpus.card", gpus.get("card"))
    count = made.count("gpus.count", gpus.get("count", 1), MAX_CARDS)
    linked = _linked(made, gpus, card, count)
    if card is None or count is None:
        return None, [], {}
    if card["unified"] and count > 1:
        made.bad("contradiction", "gpus.count", "%d of %s" % (count, card["name"]),
                 "1: its memory is the host's")
    busy = _busy(made, given, count)
    devices, unread = [], {}
    for index in range(count):
        device, missing = _device(made, card, index, linked and count > 1)
        if index in busy:
            _occupy(made, device, device, busy[index], index, None)
        devices.append(device)
        unread.update(missing)
    for device in devices:
        if device["nvlink"]:
            device["nvlink"]["peers"] = [one["uuid"] for one in devices if one is not device]
    return card, devices, unread


def _card(made: Profile, key: str, name: Any) -> Optional[Row]:
    rows = made.catalog["gpus"]
    names = {word.lower(): row for row in rows for word in (row["name"], row["short"])}
    if isinstance(name, str) and name.strip().lower() in names:
        return names[name.strip().lower()]
    near = difflib.get_close_matches(name.lower(), names, n=3) if isinstance(name, str) else []
    made.bad("unknown-card", key, shown(name),
             "a name or a short one of catalog/gpus.yml: %s" % ", ".join(
                 row["short"] for row in rows),
             "did you mean %s?" % " or ".join(
                 dict.fromkeys(names[one]["name"] for one in near)) if near else "")
    return None


def _linked(made: Profile, gpus: Dict[Any, Any], card: Optional[Row],
            count: Optional[int]) -> bool:
    """Whether the cards are NVLink peers of each other; where they can be it has to be said."""
    if card is None:
        return False
    linked = gpus.get("nvlink")
    if linked is not None and not isinstance(linked, bool):
        made.bad("not-a-truth-value", "gpus.nvlink", shown(linked), "true or false")
    elif linked and not card["nvlink"]:
        made.bad("contradiction", "gpus.nvlink", "true, and %s has no NVLink" % card["name"],
                 "false")
    elif linked is None and card["nvlink"] and (count or 1) > 1:
        made.bad("missing", "gpus.nvlink", "nothing",
                 "true where NVLink joins all of these cards, false where it does not")
    return linked is True


def _reserved(made: Profile, card: Row) -> int:
    """What the driver keeps; where nobody measured it, the most that was measured on a card."""
    measured = [row["reserved_mib"] for row in made.catalog["gpus"] if row["reserved_mib"]]
    return int(card["reserved_mib"] or max(measured, default=0)) * MIB


def _uuid(made: Profile, what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "firstlight:%s/%s" % (made.name, what)))


def _device(made: Profile, card: Row, index: int,
            linked: bool) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """An idle, healthy card, and why figures of it are null."""
    total, reserved = card["memory_mib"] * MIB, _reserved(made, card)
    pages = card["architecture"] in WITH_PAGES
    device = {
        "index": index, "uuid": "GPU-" + _uuid(made, str(index)), "name": card["nvml_name"],
        "bus_id": "0000:%02x:00.0" % (index + 1), "architecture": card["architecture"],
        "capability": card["capability"], "unified_memory": card["unified"],
        "memory_total_bytes": total, "memory_free_bytes": total - reserved,
        "memory_reserved_bytes": reserved, "holders": [], "utilisation_percent": 0,
        "compute_mode": "default", "persistence": True, "temperature_c": 30,
        "mig": {"enabled": False, "pending": False, "slices": []} if card["mig_profiles"]
        else None,
        "ecc": {"enabled": card["datacenter"], "pending": card["datacenter"],
                "corrected_volatile": 0, "uncorrected_volatile": 0, "corrected_aggregate": 0,
                "uncorrected_aggregate": 0},
        "remapped_rows": None if pages else {
            "correctable": 0, "uncorrectable": 0, "pending": False, "failed": False},
        "retired_pages_pending": False if pages else None,
        "throttle_reasons": ["gpu_idle"], "recovery_action": "none", "numa_node": None,
        "cpu_list": None,
        "nvlink": {"links": LINKS, "active": LINKS, "to_switch": False, "peers": [], "clique": 0}
        if linked else None,
        "fabric": None, "xids": [],
    }
    if card["unified"]:
        tegra = any(row["capability"] == card["capability"]
                    for row in made.catalog["jetson_chips"])
        absent = UNREAD_UNIFIED + (UNREAD_TEGRA if tegra else ())
        # Its holders become null once what they hold was counted.
        absent += tuple(key for key in UNREAD_NVGPU if key != "holders") if (
            card["nvml_name"] == NVGPU) else ()
        device.update(dict.fromkeys(absent))
    unread = {"devices[%d].%s" % (index, key): UNSAID if key in ("numa_node", "cpu_list")
              else UNSUPPORTED for key, value in device.items() if value is None}
    if card["nvml_name"] == NVGPU:
        unread["devices[%d].holders" % index] = UNSUPPORTED
    return device, unread


def _busy(made: Profile, given: Dict[Any, Any], count: int) -> Dict[int, Dict[Any, Any]]:
    """What somebody else's processes hold, by the index of the device or the slice."""
    asked = given.get("busy", [])
    if not isinstance(asked, (list, tuple)):
        made.bad("not-a-list", "busy", shown(asked), "a list of indices")
        return {}
    busy: Dict[int, Dict[Any, Any]] = {}
    for number, one in enumerate(asked):
        key = "busy[%d]" % number
        entry: Optional[Dict[Any, Any]] = {"index": one}
        if isinstance(one, dict):
            entry = made.mapping(key, one, BUSY_KEYS)
            key += ".index"
        if entry is None:
            continue
        index = made.count(key, entry.get("index"), count - 1, least=0)
        if index in busy:
            made.bad("duplicate", key, "%s once more" % index, "each device once")
        elif index is not None:
            busy[index] = dict(entry, key="busy[%d]" % number)
    return busy


def _occupy(made: Profile, device: Dict[str, Any], of: Dict[str, Any], entry: Dict[Any, Any],
            number: int, gpu_instance: Optional[int]) -> None:
    """Let a process hold memory of a device, or of a slice of it: half where it is not said."""
    free = of["memory_free_bytes"]
    held: Optional[int] = free // 2
    if "bytes" in entry:
        held = made.count(entry["key"] + ".bytes", entry["bytes"], free)
    command = made.text(entry["key"] + ".command", entry.get("command", BUSY_COMMAND))
    if held is None or command is None:
        return
    of["memory_free_bytes"] = free - held
    device["holders"].append({
        "pid": 1000 + number, "command": command, "user": "nobody", "bytes": held,
        "kind": "compute", "gpu_instance": gpu_instance})


def _mig(made: Profile, given: Dict[Any, Any], gpus: Dict[Any, Any]
         ) -> Tuple[Optional[Row], List[Dict[str, Any]], Dict[str, Any]]:
    """Cards that are cut into slices of one profile, as many cards as the slices need."""
    for key in ("card", "count", "nvlink"):
        if key in gpus:
            made.bad("contradiction", "gpus." + key, "it stands beside mig",
                     "either whole cards or mig", "move it into gpus.mig, or remove it")
    mig = made.mapping("gpus.mig", gpus["mig"], MIG_KEYS)
    if mig is None:
        return None, [], {}
    card = _card(made, "gpus.mig.card", mig.get("card"))
    count = made.count("gpus.mig.count", mig.get("count", 1), MAX_CARDS)
    if card is None or count is None:
        return None, [], {}
    profiles = {row["name"]: row for row in card["mig_profiles"]}
    name = mig.get("profile")
    if not isinstance(name, str) or name not in profiles:
        near = difflib.get_close_matches(name, profiles, n=1) if isinstance(name, str) else []
        made.bad("unknown-mig-profile", "gpus.mig.profile", shown(name),
                 "one of %s" % ", ".join(profiles) if profiles
                 else "a card with MIG profiles in catalog/gpus.yml",
                 "did you mean %s?" % near[0] if near else "")
        return card, [], {}
    row = profiles[name]
    if not row["memory_mib"]:
        made.bad("mig-memory-unknown", "gpus.mig.profile",
                 "%s of %s, whose memory catalog/gpus.yml does not know" % (name, card["name"]),
                 "a profile whose memory is known", "add its memory to catalog/gpus.yml")
        return card, [], {}
    fit = max(1, min(max(one["slices"] for one in profiles.values()) // row["slices"],
                     card["memory_mib"] // row["memory_mib"]))
    busy = _busy(made, given, count)
    devices, unread = [], {}
    for index in range(-(-count // fit)):
        device, missing = _device(made, card, index, False)
        device["utilisation_percent"] = None
        unread.update(missing)
        unread["devices[%d].utilisation_percent" % index] = UNSUPPORTED
        slices = [_slice(made, card, row, number, number - index * fit)
                  for number in range(index * fit, min(count, (index + 1) * fit))]
        for number, piece in enumerate(slices, index * fit):
            if number in busy:
                _occupy(made, device, piece, busy[number], number, piece["gpu_instance"])
        device["memory_free_bytes"] -= sum(one["bytes"] for one in device["holders"])
        device["mig"] = {"enabled": True, "pending": True, "slices": slices}
        devices.append(device)
    return card, devices, unread


def _slice(made: Profile, card: Row, profile: Row, number: int, place: int) -> Dict[str, Any]:
    size = profile["memory_mib"] * MIB
    return {"uuid": "MIG-" + _uuid(made, "mig%d" % number),
            "name": "%s MIG %s" % (card["nvml_name"], profile["name"]), "gpu_instance": place + 1,
            "compute_instance": 0, "memory_total_bytes": size, "memory_free_bytes": size}
