# SPDX-License-Identifier: Apache-2.0
"""A host that does not exist, from a short profile: what its facts would be, and its models'.

The host is idle and well: whatever a profile does not say of it is null with that as its reason,
or is as on such hosts where a plan would be none without it (memory that the driver keeps, swap of
a Jetson).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import uuid
from typing import Any, Dict, List, Mapping, Optional, Tuple

from .. import jetson, model_config
from ..findings import Finding, finding
from .requests import REPO_ID, VARIABLE, whole_number

Catalog = Dict[str, List[Dict[str, Any]]]
Facts = Dict[str, Any]
Row = Dict[str, Any]

MIB, GIB = 2**20, 2**30
MAX_CARDS = 64
# Larger than any machine or model: a slip of the unit.
MAX_MEMORY_GIB, MAX_BYTES, MAX_RATE_MIB = 2**16, 2**50, 2**20
MAX_CORES = 2**16
ARCHITECTURES = ("x86_64", "aarch64")
FORMATS = ("safetensors", "gguf")
# What an idle system takes of the RAM; of a small one an eighth.
SYSTEM_BYTES = GIB
# Links of an NVLink card. Plans and health only ask whether there are any.
LINKS = 12
BUSY_COMMAND = "a process of somebody else"

KEYS = ("name", "gpus", "busy", "driver", "memory_gib", "cores", "disk_mib_s", "architecture",
        "l4t", "docker", "models", "endpoints", "facts")
# What whole facts have already.
OF_FACTS = ("gpus", "busy", "driver", "memory_gib", "cores", "architecture", "l4t", "docker")
GPU_KEYS = ("card", "count", "nvlink", "mig")
MIG_KEYS = ("card", "profile", "count")
BUSY_KEYS = ("index", "bytes", "command")
MODEL_KEYS = ("config", "format", "quantisation", "bytes")

UNSUPPORTED = {"code": "nvml-3", "reason": "NVML error 3: Not Supported"}
UNSAID = {"code": "absent", "reason": "the profile does not tell it"}
SOURCE = "the profile"
# Figures that GPUs with the host's memory do not tell, those of Tegra in addition, and those of
# Tegra before Thor, whose driver is another.
UNREAD_UNIFIED = ("memory_reserved_bytes", "mig", "ecc", "remapped_rows", "retired_pages_pending",
                  "nvlink", "fabric")
UNREAD_TEGRA = ("utilisation_percent", "temperature_c", "throttle_reasons", "recovery_action")
UNREAD_NVGPU = ("bus_id", "compute_mode", "persistence", "holders")
NVGPU = "Orin (nvgpu)"
# Cards that retire pages; later ones remap rows.
WITH_PAGES = ("volta", "turing")


class _Profile:
    """A profile as far as it was read, and everything that is wrong with it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.findings: List[Finding] = []
        self.name = "host"

    def bad(self, id: str, key: str, found: str, wanted: str,  # noqa: A002
            remedy: str = "") -> None:
        """Something is wrong with a key."""
        subject = "profile.%s" % key if key else "profile"
        self.findings.append(finding(
            "profile-" + id, subject, found, wanted, remedy or "change %s" % subject))

    def known(self, key: str, given: Mapping[Any, Any], keys: Tuple[str, ...]) -> None:
        """Every key is one that is read."""
        for one in given:
            if one in keys:
                continue
            shown = one if isinstance(one, str) else repr(one)
            near = difflib.get_close_matches(shown.lower(), keys, n=1)
            inner = "%s.%s" % (key, shown) if key else shown
            self.bad("unknown-key", inner, "a key that nothing reads",
                     "one of " + ", ".join(keys),
                     "did you mean `%s`?" % near[0] if near else "remove it")

    def mapping(self, key: str, given: Any, keys: Tuple[str, ...]) -> Optional[Dict[Any, Any]]:
        """A mapping of known keys; ``None`` where it is something else, which is told."""
        if not isinstance(given, dict):
            self.bad("not-a-mapping", key, _shown(given), "a mapping with " + ", ".join(keys))
            return None
        self.known(key, given, keys)
        return given

    def count(self, key: str, given: Any, most: int, least: int = 1) -> Optional[int]:
        """A whole number between two."""
        number = whole_number(given)
        if number is None or not least <= number <= most:
            self.bad("not-a-count", key, _shown(given),
                     "a whole number from %d to %d" % (least, most))
            return None
        return int(number)

    def amount(self, key: str, given: Any, most: int) -> Optional[float]:
        """A number above 0."""
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= most:
            self.bad("not-an-amount", key, _shown(given), "a number above 0, at most %d" % most)
            return None
        return float(given)

    def text(self, key: str, given: Any) -> Optional[str]:
        """Text, of which YAML may have made a number."""
        if isinstance(given, str) and given.strip() and given.isprintable():
            return given
        self.bad("not-text", key, _shown(given), "text",
                 "quote it: YAML reads it as a number" if isinstance(given, (int, float)) else "")
        return None

    def choice(self, key: str, given: Any, choices: Tuple[str, ...]) -> Optional[str]:
        """One of some words."""
        if isinstance(given, str) and given in choices:
            return given
        self.bad("unknown-word", key, _shown(given), "one of " + ", ".join(choices))
        return None


def plan_profile(profile: Any, catalog: Catalog, endpoints: Any = None) -> Dict[str, Any]:
    """What ``gpu_facts``, ``model_info`` and ``endpoint_info`` would return of a host.

    :param profile: as the YAML file has it.
    :param catalog: ``{gpus: rows, jetson_releases: rows, jetson_chips: rows}``.
    :param endpoints: what is asked for where the profile has no ``endpoints`` of its own.
    :returns: ``{name, facts, models, state, endpoints, findings}``. With findings there are no
        facts: a plan of half a host would be none.
    """
    made = _Profile(catalog)
    profile, endpoints = _plain(profile), _plain(endpoints)
    given = made.mapping("", profile, KEYS) or {}
    if "name" in given:
        made.name = made.text("name", given["name"]) or made.name
    facts = _given_facts(made, given) if "facts" in given else _facts(made, given)
    if "disk_mib_s" in given:
        rate = made.amount("disk_mib_s", given["disk_mib_s"], MAX_RATE_MIB)
        if rate and facts:
            facts["disk"] = dict(facts["disk"], read_bytes_per_second=max(1, int(rate * MIB)))
    models = _models(made, given)
    asked = given.get("endpoints", endpoints)
    if isinstance(profile, dict):
        _asked(made, asked, models, "endpoints" in given)
    whole = not made.findings
    return {
        "name": made.name,
        "facts": facts if whole else None,
        "models": models if whole else {},
        "state": _state(),
        "endpoints": asked if whole else [],
        "findings": made.findings,
    }


def _plain(value: Any) -> Any:
    """A value of Python's own types: Ansible's numbers and texts carry more, and are none here."""
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    kind = next((one for one in (int, float) if isinstance(value, one)), str)
    return kind(value)


def _state() -> Dict[str, Any]:
    """A host of root's on which nothing of ours runs yet."""
    return {
        "root": "/var/lib/firstlight", "uid": 0, "manager": "systemd", "missing_libraries": [],
        "python": {"version": "3.11.2", "venv": True}, "endpoints": {}, "ports": {},
        "strangers": [], "environments": [], "caches": [],
    }


def _shown(value: Any) -> str:
    """A value as it stands in the profile, not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    shown = ascii(value)
    return shown if len(shown) <= 60 else shown[:60] + "..."


# Facts from the short keys.


def _facts(made: _Profile, given: Dict[Any, Any]) -> Optional[Facts]:
    """The facts; ``None`` where what they need is wrong or missing."""
    memory = None
    if "memory_gib" in given:
        memory = made.amount("memory_gib", given["memory_gib"], MAX_MEMORY_GIB)
    elif given:
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
        "disk": {"path": _state()["root"] + "/models", "total_bytes": None, "free_bytes": None},
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


def _jetson(made: _Profile, given: Dict[Any, Any], card: Optional[Row]) -> Optional[Dict[str, Any]]:
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


def _devices(made: _Profile, given: Dict[Any, Any]
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


def _card(made: _Profile, key: str, name: Any) -> Optional[Row]:
    rows = made.catalog["gpus"]
    names = {word.lower(): row for row in rows for word in (row["name"], row["short"])}
    if isinstance(name, str) and name.strip().lower() in names:
        return names[name.strip().lower()]
    near = difflib.get_close_matches(name.lower(), names, n=3) if isinstance(name, str) else []
    made.bad("unknown-card", key, _shown(name),
             "a name or a short one of catalog/gpus.yml: %s" % ", ".join(
                 row["short"] for row in rows),
             "did you mean %s?" % " or ".join(
                 dict.fromkeys(names[one]["name"] for one in near)) if near else "")
    return None


def _linked(made: _Profile, gpus: Dict[Any, Any], card: Optional[Row],
            count: Optional[int]) -> bool:
    """Whether the cards are NVLink peers of each other; where they can be it has to be said."""
    if card is None:
        return False
    linked = gpus.get("nvlink")
    if linked is not None and not isinstance(linked, bool):
        made.bad("not-a-truth-value", "gpus.nvlink", _shown(linked), "true or false")
    elif linked and not card["nvlink"]:
        made.bad("contradiction", "gpus.nvlink", "true, and %s has no NVLink" % card["name"],
                 "false")
    elif linked is None and card["nvlink"] and (count or 1) > 1:
        made.bad("missing", "gpus.nvlink", "nothing",
                 "true where NVLink joins all of these cards, false where it does not")
    return linked is True


def _reserved(made: _Profile, card: Row) -> int:
    """What the driver keeps; where nobody measured it, the most that was measured on a card."""
    measured = [row["reserved_mib"] for row in made.catalog["gpus"] if row["reserved_mib"]]
    return int(card["reserved_mib"] or max(measured, default=0)) * MIB


def _uuid(made: _Profile, what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "firstlight:%s/%s" % (made.name, what)))


def _device(made: _Profile, card: Row, index: int,
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


def _busy(made: _Profile, given: Dict[Any, Any], count: int) -> Dict[int, Dict[Any, Any]]:
    """What somebody else's processes hold, by the index of the device or the slice."""
    asked = given.get("busy", [])
    if not isinstance(asked, (list, tuple)):
        made.bad("not-a-list", "busy", _shown(asked), "a list of indices")
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


def _occupy(made: _Profile, device: Dict[str, Any], of: Dict[str, Any], entry: Dict[Any, Any],
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


def _mig(made: _Profile, given: Dict[Any, Any], gpus: Dict[Any, Any]
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
        made.bad("unknown-mig-profile", "gpus.mig.profile", _shown(name),
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


def _slice(made: _Profile, card: Row, profile: Row, number: int, place: int) -> Dict[str, Any]:
    size = profile["memory_mib"] * MIB
    return {"uuid": "MIG-" + _uuid(made, "mig%d" % number),
            "name": "%s MIG %s" % (card["nvml_name"], profile["name"]), "gpu_instance": place + 1,
            "compute_instance": 0, "memory_total_bytes": size, "memory_free_bytes": size}


# Whole facts.


def _given_facts(made: _Profile, given: Dict[Any, Any]) -> Optional[Facts]:
    """Facts as ``gpu_facts`` printed them, with or without what ``ansible -m`` puts around."""
    for key in OF_FACTS:
        if key in given:
            made.bad("contradiction", key, "it stands beside facts, which have it already",
                     "one of both", "remove %s or facts" % key)
    facts = given["facts"]
    for key in ("ansible_facts", "gpu_host"):
        if isinstance(facts, dict) and isinstance(facts.get(key), dict):
            facts = facts[key]
    before = len(made.findings)
    _compare(made, "facts", facts, _sample(made.catalog))
    if len(made.findings) > before:
        return None
    return dict(facts)


# Facts that are never null, so that whoever plans may look into them.
NEVER_NULL = ("facts", "facts.class", "facts.devices", "facts.containers", "facts.cpu",
              "facts.memory", "facts.disk", "facts.system", "facts.system.like",
              "facts.sources", "facts.unread")


def _sample(catalog: Catalog) -> Facts:
    """Facts that have every key, to hold others against."""
    made = _Profile(dict(catalog, gpus=[SAMPLE_CARD]))
    facts = _facts(made, {"memory_gib": 1, "driver": "1", "cores": 1, "docker": "1",
                          "gpus": {"card": SAMPLE_CARD["name"], "count": 2, "nvlink": True},
                          "busy": [0]})
    if facts is None:
        raise AssertionError(made.findings)
    return facts


SAMPLE_CARD: Row = {
    "name": "a card", "nvml_name": "a card", "short": "a-card", "architecture": "ampere",
    "capability": "8.0", "memory_mib": 2, "reserved_mib": 1, "unified": False, "nvlink": True,
    "datacenter": True, "mig_profiles": [{"name": "1g.1mb", "memory_mib": 1, "slices": 1}],
}
SLICE_KEYS = ("uuid", "name", "gpu_instance", "compute_instance", "memory_total_bytes",
              "memory_free_bytes")
# By labels: what has keys of its own choice, and is looked into no further.
OPEN = ("facts.sources", "facts.jetson", "facts.driver", "facts.fabric_manager",
        "facts.persistence_daemon")


def _compare(made: _Profile, label: str, value: Any, sample: Any) -> None:
    """Tell what is missing or of another kind than in facts that are whole."""
    if value is None and label not in NEVER_NULL and not label.endswith("]"):
        return
    wanted = "as the module gpu_facts returns it"
    if label == "facts.unread":
        _compare_unread(made, value)
    elif label in OPEN or label.endswith(".fabric"):
        if not isinstance(value, dict):
            made.bad("bad-facts", label, _shown(value), "a mapping, " + wanted)
    elif isinstance(sample, dict):
        if not isinstance(value, dict):
            made.bad("bad-facts", label, _shown(value), "a mapping, " + wanted)
            return
        for key, inner in sample.items():
            if key in value:
                _compare(made, "%s.%s" % (label, key), value[key], inner)
            else:
                made.bad("bad-facts", "%s.%s" % (label, key), "it is missing", wanted)
    elif isinstance(sample, list):
        if not isinstance(value, list):
            made.bad("bad-facts", label, _shown(value), "a list, " + wanted)
        elif label.endswith(".slices"):
            sample = [dict.fromkeys(SLICE_KEYS)]
        for number, one in enumerate(value if isinstance(value, list) else []):
            if sample:
                _compare(made, "%s[%d]" % (label, number), one, sample[0])
    elif sample is not None and not _alike(value, sample):
        made.bad("bad-facts", label, _shown(value), "%s, %s" % (
            {bool: "true or false", str: "text"}.get(type(sample), "a number from 0"), wanted))


def _alike(value: Any, sample: Any) -> bool:
    if isinstance(sample, (bool, str)):
        return isinstance(value, type(sample))
    return type(value) in (int, float) and value >= 0


def _compare_unread(made: _Profile, value: Any) -> None:
    good = isinstance(value, dict) and all(
        isinstance(label, str) and isinstance(one, dict) and isinstance(one.get("code"), str)
        and isinstance(one.get("reason"), str) for label, one in value.items())
    if not good:
        made.bad("bad-facts", "facts.unread", "not a mapping of code and reason for each",
                 "as the module gpu_facts returns it")


# Models, and what is asked for.


def _models(made: _Profile, given: Dict[Any, Any]) -> Dict[str, Any]:
    models: Dict[str, Any] = {}
    if "models" not in given:
        return models
    if not isinstance(given["models"], dict):
        made.bad("not-a-mapping", "models", _shown(given["models"]),
                 "a mapping of models by path or repository id")
        return models
    for name, entry in given["models"].items():
        if not isinstance(name, str) or not name.isprintable() or not (
                name.startswith("/") or REPO_ID.match(name)):
            made.bad("bad-model-name", "models", _shown(name),
                     "a repository id, or an absolute path on the host")
            continue
        described = made.mapping("models[%s]" % name, entry, MODEL_KEYS)
        model = _model(made, name, described) if described is not None else None
        if model is not None:
            models[name] = model
    return models


def _model(made: _Profile, name: str, given: Dict[Any, Any]) -> Optional[Dict[str, Any]]:
    """The model as ``model_info`` would describe it."""
    where = "models[%s]" % name
    before = len(made.findings)
    config = given.get("config")
    if not isinstance(config, dict) or not config:
        made.bad("missing", where + ".config", _shown(config),
                 "the fields of the model's config.json")
        return None
    for sentence in model_config.contradictions(config):
        made.bad("contradiction", where + ".config", sentence, "a config that can be")
    kind = made.choice(where + ".format", given.get(
        "format", "gguf" if name.endswith(".gguf") else "safetensors"), FORMATS)
    geometry, quantised = model_config.geometry(config), model_config.quantisation(config)
    method = str(quantised["method"])
    if kind == "gguf":
        method = made.text(where + ".quantisation", given.get("quantisation", "unknown")) or ""
    elif "quantisation" in given:
        made.bad("contradiction", where + ".quantisation", _shown(given["quantisation"]),
                 "none: the config says it", "remove it, or put it into config")
    size = None
    if "bytes" in given:
        size = made.count(where + ".bytes", given["bytes"], MAX_BYTES)
    elif kind == "safetensors":
        size = model_config.weight_bytes(geometry, quantised)
    if size is None and "bytes" not in given and kind:
        made.bad("missing", where + ".bytes", "nothing, and the config does not tell them",
                 "the bytes of the model's files")
    if len(made.findings) > before:
        return None
    plain = kind == "safetensors" and model_config.quantisation_method(config) is None
    return {
        "path": name,
        "format": kind,
        "files": 1,
        "bytes": size,
        "fingerprint": hashlib.sha256(json.dumps(
            _with_texts(config), sort_keys=True).encode()).hexdigest(),
        "name": name.rstrip("/").rpartition("/")[2],
        # As the tensors' own headers have it.
        "quantisation": method.upper() if plain and method != "unknown" else method,
        "quantisation_bits": quantised["bits"] if kind == "safetensors" else None,
        "quantisation_group": quantised["group"] if kind == "safetensors" else None,
        "chat_template": True,
        "tensors": _tensors(geometry, method, size) if kind == "safetensors" else None,
        "geometry": geometry,
    }


def _with_texts(value: Any) -> Any:
    """The same with every key a text, as in JSON."""
    if isinstance(value, dict):
        return {str(key): _with_texts(one) for key, one in value.items()}
    return [_with_texts(one) for one in value] if isinstance(value, list) else value


def _tensors(geometry: Dict[str, Any], method: str,
             size: Optional[int]) -> Optional[Dict[str, int]]:
    """Bytes by use: embeddings and head stay in 16 bits where the rest is quantised."""
    counted = model_config.parameters(geometry)
    if counted is None or size is None:
        return None
    width = 4 if method == "f32" else 2
    embedding, head = counted["embedding"] * width, counted["head"] * width
    if embedding + head > size:
        return None
    return {"embedding_bytes": embedding, "head_bytes": head,
            "other_bytes": size - embedding - head}


def _asked(made: _Profile, asked: Any, models: Dict[str, Any], own: bool) -> None:
    """Every model that is asked for is described; the rest is judged as on any host."""
    where = "endpoints" if own else VARIABLE
    if not isinstance(asked, (list, tuple)) or not asked:
        made.bad("missing", "endpoints", _shown(asked) if asked or own else "nothing",
                 "a list of endpoints, here or in %s" % VARIABLE)
        return
    for number, one in enumerate(asked):
        model = one.get("model") if isinstance(one, dict) else None
        if not isinstance(model, str) or model in models or model == "canary":
            continue
        near = difflib.get_close_matches(model, models, n=1)
        made.findings.append(finding(
            "profile-model-unknown", "%s[%d].model" % (
                "profile." + where if own else where, number), _shown(model),
            "a model that profile.models describes: %s" % (", ".join(models) or "it has none"),
            "did you mean %s?" % near[0] if near else "describe it in profile.models"))
