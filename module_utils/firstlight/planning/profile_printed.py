# SPDX-License-Identifier: Apache-2.0
"""Whole facts in a profile, as ``gpu_facts`` printed them on a host."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from .profile_facts import from_keys
from .profile_keys import Catalog, Profile, shown

Facts = Dict[str, Any]
Row = Dict[str, Any]

# What whole facts have already.
OF_FACTS = ("gpus", "busy", "driver", "memory_gib", "cores", "architecture", "l4t", "docker")


def given_facts(made: Profile, given: Dict[Any, Any]) -> Optional[Facts]:
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
NEVER_NULL = ("facts", "facts.class", "facts.devices", "facts.devices[].index",
              "facts.containers", "facts.cpu", "facts.memory", "facts.disk", "facts.system",
              "facts.system.like", "facts.sources", "facts.unread")


def _sample(catalog: Catalog) -> Facts:
    """Facts that have every key, to hold others against."""
    made = Profile(dict(catalog, gpus=[SAMPLE_CARD]))
    facts = from_keys(made, {
        "memory_gib": 1, "driver": "1", "cores": 1, "docker": "1", "busy": [0],
        "gpus": {"card": SAMPLE_CARD["name"], "count": 2, "nvlink": True}})
    if facts is None:
        raise ValueError(made.findings)
    return facts


SAMPLE_CARD: Row = {
    "name": "a card", "nvml_name": "a card", "short": "a-card", "architecture": "ampere",
    "capability": "8.0", "memory_mib": 2, "reserved_mib": 1, "unified": False, "nvlink": True,
    "datacenter": True, "mig_profiles": [{"name": "1g.1mb", "memory_mib": 1, "slices": 1}],
}
_XID = {"code": 0, "count": 0, "age_s": 0, "text": ""}
_DAEMON = {"state": "", "enabled": True}
# What the sample has none of, by the label without numbers.
SAMPLES: Dict[str, Any] = {
    "facts.driver": dict.fromkeys(("version", "cuda", "nvml", "kernel_module"), ""),
    "facts.persistence_daemon": _DAEMON,
    "facts.fabric_manager": dict(_DAEMON, version=""),
    "facts.jetson": dict(dict.fromkeys((
        "l4t", "jetpack", "cuda", "board", "soc", "chip", "power_mode", "runtime"), ""),
        jetpack_major=0, power_mode_id=0, power_modes={}),
    "facts.orphan_xids": [dict(_XID, bus_id="")],
    "facts.other_cards": [{"vendor": "", "bus_id": "", "device": ""}],
    "facts.sources": {},
    "facts.containers.cdi_devices": [""],
    "facts.memory.limit_bytes": 0,
    "facts.disk.total_bytes": 0,
    "facts.disk.free_bytes": 0,
    "facts.system.distribution": "",
    "facts.system.like": [""],
    "facts.devices[].xids": [_XID],
    "facts.devices[].retired_pages_pending": True,
    "facts.devices[].fabric": {"state": "", "status": "", "clique_id": 0, "cluster_uuid": ""},
    "facts.devices[].mig.slices": [{
        "uuid": "", "name": "", "gpu_instance": 0, "compute_instance": 0,
        "memory_total_bytes": 0, "memory_free_bytes": 0}],
}
INDEX = re.compile(r"\[\d+\]")


def _compare(made: Profile, label: str, value: Any, sample: Any) -> None:
    """Tell what is missing or of another kind than in facts that are whole."""
    place = INDEX.sub("[]", label)
    sample = SAMPLES.get(place, sample)
    if value is None and place not in NEVER_NULL and not label.endswith("]"):
        return
    wanted = "as the module gpu_facts returns it"
    if label == "facts.unread":
        _compare_unread(made, value)
    elif isinstance(sample, dict):
        if not isinstance(value, dict):
            made.bad("bad-facts", label, shown(value), "a mapping, " + wanted)
            return
        for key, inner in sample.items():
            if key in value:
                _compare(made, "%s.%s" % (label, key), value[key], inner)
            else:
                made.bad("bad-facts", "%s.%s" % (label, key), "it is missing", wanted)
    elif isinstance(sample, list):
        if not isinstance(value, list):
            made.bad("bad-facts", label, shown(value), "a list, " + wanted)
            return
        for number, one in enumerate(value):
            _compare(made, "%s[%d]" % (label, number), one, sample[0])
    elif sample is not None and not _alike(value, sample):
        made.bad("bad-facts", label, shown(value), "%s, %s" % (
            {bool: "true or false", str: "text"}.get(type(sample), "a number from 0"), wanted))


def _alike(value: Any, sample: Any) -> bool:
    if isinstance(sample, (bool, str)):
        return isinstance(value, type(sample))
    return type(value) in (int, float) and value >= 0


def _compare_unread(made: Profile, value: Any) -> None:
    good = isinstance(value, dict) and all(
        isinstance(label, str) and isinstance(one, dict) and isinstance(one.get("code"), str)
        and isinstance(one.get("reason"), str) for label, one in value.items())
    if not good:
        made.bad("bad-facts", "facts.unread", "not a mapping of code and reason for each",
                 "as the module gpu_facts returns it")
