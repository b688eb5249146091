# SPDX-License-Identifier: Apache-2.0
"""How well a host is: facts held against the catalogs of health. Missing data is never well."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ..findings import Finding, finding
from .tuning import largest_mode

Facts = Dict[str, Any]
Row = Dict[str, Any]

VERDICTS = ("ok", "degraded", "bad")
SEVERITY = dict(zip(VERDICTS, ("info", "warning", "error")))
UNSUPPORTED = ("nvml-3", "nvml-13")
"""Reasons that say that this hardware or this driver has no such thing."""
GPU_LABEL = re.compile(r"devices\[\d+\]")
NVML_LABELS = ("nvml", "devices")
"""Labels of the answers without which nothing is known of any GPU."""
WITH_XIDS = ("nvidia", "unified")
UNKNOWN_XID = 0
NEED_ROOT = ("eacces", "eperm", "nvml-4")

# What to change where a figure could not be read, by the reason's code.
WAYS_TO_READ = {
    **dict.fromkeys(NEED_ROOT, "read the facts as root"),
    "timeout": "look why it gives no answer in time (a hanging driver shows in dmesg), then read "
               "the facts again",
    "absent": "bring what would tell it, as the reason names it, then read the facts again",
    "unasked": "let NVML be asked: bring the toolbelt, as the driver's library is there",
    "unknown": "the answer is newer than this project: say so in an issue, with the reason",
}
ELSE_TO_READ = "look for NVRM in the kernel log (dmesg), then read the facts again"


class Place(NamedTuple):
    """What a finding can be about: the host, one of its GPUs, another card."""

    scope: str
    key: str
    """The UUID or the label of a card, empty for the host: the name that its verdict has."""
    label: str
    """How labels of facts about it begin, without the dot."""
    subject: str
    index: Any
    figures: Dict[str, Any]


class Judged(NamedTuple):
    """A finding with what it does to the place that it is about."""

    place: Place
    verdict: str
    finding: Finding
    hidden_by: Tuple[str, ...] = ()
    helps: str = ""
    unread: Tuple[str, str, str] = ("", "", "")
    """Label, code and reason of the figure that is not known, where that is what is found."""


def host_health(facts: Facts, catalog: Dict[str, List[Row]]) -> Dict[str, Any]:
    """The health of a host and of each of its GPUs.

    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param catalog: ``{health_limits: rows, nvml_errors: rows, xid_events: rows}``.
    :returns: ``{verdict, devices, findings, remedies}``: ``ok``, ``degraded`` or ``bad`` of the
        host and of each GPU (by its UUID, else by its label or PCI address), and the names of the
        safe remedies that help now. A host with one bad GPU among good ones is degraded; what is
        bad of the host is bad for every GPU.
    """
    places = _places(facts)
    judged = _by_nvml(facts, places, catalog["nvml_errors"])
    for row in catalog["health_limits"]:
        if facts["class"] in row["classes"]:
            for place in places:
                if place.scope == row["scope"]:
                    judged += _by_row(facts, place, row, catalog["nvml_errors"])
    if facts["class"] in WITH_XIDS:
        judged += _by_xids(facts, places, catalog["xid_events"], catalog["nvml_errors"])
    told = _gathered([one for one in judged if not _is_hidden(one, judged)])
    devices = _devices(places, judged)
    return {
        "verdict": _of_all(devices, judged),
        "devices": devices,
        "findings": [one.finding for one in told],
        "remedies": sorted({one.helps for one in told if one.helps}),
    }


def key_of(device: Dict[str, Any]) -> str:
    """What a device is called in verdicts and plans: its UUID, else its label."""
    return device["uuid"] or "devices[%d]" % device["index"]


def title_of(device: Dict[str, Any]) -> str:
    """A device for a person: index, name and UUID."""
    known = [text for text in (device["name"], device["uuid"]) if text]
    return "GPU %d (%s)" % (device["index"], ", ".join(known) or "it tells no name")


def source_of(facts: Facts, label: str) -> str:
    """Where a figure was read: the source of the longest label that it is under."""
    return _nearest(facts["sources"], label) or "gpu_facts"


def size(count: int) -> str:
    """Bytes for a person."""
    return "%.1f GiB" % (count / 2**30)


def _worst(verdicts: Iterable[str]) -> str:
    return max(verdicts, key=VERDICTS.index, default="ok")


def _is_hidden(one: Judged, judged: List[Judged]) -> bool:
    """Whether its cause is told, of the same place or of the host."""
    return any(other.finding["id"] in one.hidden_by and other.place.label in ("", one.place.label)
               for other in judged)


def _devices(places: List[Place], judged: List[Judged]) -> Dict[str, str]:
    """The verdict of each GPU, those included that only the kernel log knows."""
    of_host = [one.verdict for one in judged if one.place.scope == "host" and one.verdict == "bad"]
    gpus = [place for place in places if place.scope == "devices"]
    gpus += [one.place for one in judged if one.place.scope == "orphan_xids"]
    return {gpu.key: _worst(of_host + [one.verdict for one in judged if one.place.key == gpu.key])
            for gpu in gpus}


def _of_all(devices: Dict[str, str], judged: List[Judged]) -> str:
    of_host = _worst(one.verdict for one in judged if not one.place.key)
    if of_host == "bad" or (devices and set(devices.values()) == {"bad"}):
        return "bad"
    return "ok" if {of_host, *devices.values()} == {"ok"} else "degraded"


def _nearest(of: Dict[str, Any], label: str) -> Any:
    """The value of the label, or of the nearest one that it is under."""
    while label:
        if label in of:
            return of[label]
        label = label[:max(label.rfind("."), label.rfind("["), 0)]
    return None


# Places, with figures that follow from others.


def _places(facts: Facts) -> List[Place]:
    host = Place("host", "", "", "this host", "", _figures_of_host(facts))
    gpus = [Place("devices", key_of(one), "devices[%d]" % one["index"], title_of(one),
                  one["index"], _figures_of_device(one, facts["devices"]))
            for one in facts["devices"]]
    others = [Place("other_cards", "", "other_cards[%d]" % number,
                    "card %s" % one["bus_id"], "", one)
              for number, one in enumerate(facts["other_cards"] or [])]
    return [host, *gpus, *others]


def _figures_of_host(facts: Facts) -> Dict[str, Any]:
    memory = facts["memory"] or {}
    free = memory.get("free_bytes")
    reclaimable = _sum((memory.get("available_bytes"), None if free is None else -free))
    jetson = facts["jetson"]
    if jetson is not None:
        jetson = dict(jetson, power_mode_largest=largest_mode(jetson["power_modes"] or ()))
    return dict(facts, jetson=jetson, memory=dict(memory, reclaimable_bytes=reclaimable))


def _figures_of_device(device: Dict[str, Any], devices: List[Dict[str, Any]]) -> Dict[str, Any]:
    split = bool(device["mig"] and device["mig"]["enabled"])
    holders = [{"bytes": None}] if device["holders"] is None else device["holders"]
    held = _sum([device["memory_free_bytes"], device["memory_reserved_bytes"],
                 *(one["bytes"] for one in holders)])
    # What processes in MIG slices hold is counted otherwise; unified memory is not the GPU's own.
    whole = not split and not device["unified_memory"]
    unseen = _sum((device["memory_total_bytes"], None if held is None else -held))
    return dict(device, split=split, memory_unseen_bytes=unseen if whole else None,
                nvlinks_expected=_nvlinks_expected(device, devices))


def _nvlinks_expected(device: Dict[str, Any], devices: List[Dict[str, Any]]) -> Optional[int]:
    """All links where they lead to switches; else, as bridges vary, what its likes here have."""
    own = device["nvlink"]
    if own is None:
        return None
    alike = [one["nvlink"]["active"] for one in devices
             if one["nvlink"] and one["name"] == device["name"]]
    expected: Optional[int] = own["links"] if own["to_switch"] else max(
        (active for active in alike if active is not None), default=None)
    return expected


def _sum(parts: Iterable[Optional[int]]) -> Optional[int]:
    """The sum of figures, not known where one of them is not."""
    total = 0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


# Conditions: each holds, does not, or is not known.

IS: Dict[str, Callable[[Any, Any], bool]] = {
    "above": lambda value, limit: value > limit,
    "below": lambda value, limit: value < limit,
    "equals": lambda value, limit: value == limit,
    "differs": lambda value, limit: value != limit,
    "within": lambda value, limit: value in limit,
    "holds": lambda value, limit: limit in value,
    "differs_from": lambda value, limit: value != limit,
    "below_figure": lambda value, limit: value < limit,
}
OF_FIGURES = ("differs_from", "below_figure")


def _figure(place: Place, name: str) -> Any:
    value: Any = place.figures
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _reason(facts: Facts, place: Place, name: str) -> Tuple[str, str, str]:
    """Label, code and words of why a figure is null."""
    label = "%s.%s" % (place.label, name) if place.label else name
    entry = _nearest(facts["unread"], label) or {"code": "", "reason": "no reason is given"}
    return label, entry["code"], entry["reason"]


def _holds(facts: Facts, place: Place, condition: Row) -> Tuple[Optional[bool], str]:
    """Whether the condition holds (``None``: not known), and the figure that is in the way."""
    name, kind, limit = condition["figure"], condition["is"], condition["limit"]
    value = _figure(place, name)
    if kind == "unread":
        return value is None, name
    if kind == "unsupported":
        return value is None and _reason(facts, place, name)[1] in UNSUPPORTED, name
    if value is not None and kind in OF_FIGURES:
        name, limit = limit, _figure(place, limit)
    if value is None or limit is None:
        return None if _reason(facts, place, name)[1] not in UNSUPPORTED else False, name
    return IS[kind](value, limit), name


def _by_row(facts: Facts, place: Place, row: Row, nvml_rows: List[Row]) -> List[Judged]:
    for condition in [*row["given"], row]:
        holds, name = _holds(facts, place, condition)
        if holds is None and row["needed"]:
            return [_unread(facts, place, name, nvml_rows)]
        if not holds:
            return []
    value = _figure(place, row["figure"])
    limit = _figure(place, row["limit"]) if row["is"] in OF_FIGURES else row["limit"]
    shown = size if row["unit"] == "bytes" else str
    words = {"value": shown(value), "limit": shown(limit)}
    label, _, reason = _reason(facts, place, row["figure"])
    why = reason if value in (None, []) else source_of(facts, label)
    return [_judged(place, row, row["id"], row["verdict"], "%s is %s (%s)" % (label, value, why),
                    words, tuple(row["hidden_by"]), row["helps"])]


def _judged(place: Place, row: Row, id: str, verdict: str, evidence: str,  # noqa: A002
            words: Dict[str, Any], hidden_by: Tuple[str, ...] = (), helps: str = "") -> Judged:
    words = dict(words, index=place.index)
    return Judged(place, verdict, finding(
        id, place.subject, row["found"] % words, row["wanted"] % words, row["remedy"] % words,
        severity=SEVERITY[verdict], evidence=evidence, needs_root=row["needs_root"],
        source=row["source"]), hidden_by, helps)


def _unread(facts: Facts, place: Place, name: str, nvml_rows: List[Row]) -> Judged:
    """What is needed and not known; not told beside the failure of NVML that is its cause."""
    label, code, reason = _reason(facts, place, name)
    # Where NVML was not asked, any failure of it is why.
    causes = tuple(row["finding"] for row in nvml_rows
                   if code in ("nvml-%d" % row["code"], "unasked"))
    return Judged(place, "degraded", _unread_finding(place, [label], code, reason),
                  ("gpu-silent", "no-gpu-answers", *causes), unread=(label, code, reason))


def _unread_finding(place: Place, labels: List[str], code: str, reason: str) -> Finding:
    return finding(
        "health-unread", place.subject,
        "%s could not be read: %s" % (", ".join(labels), reason),
        "a figure: what is not known is not well", WAYS_TO_READ.get(code, ELSE_TO_READ),
        severity=SEVERITY["degraded"], evidence="not known (%s)" % code,
        needs_root=code in NEED_ROOT)


def _gathered(judged: List[Judged]) -> List[Judged]:
    """The same, with one finding for all of a place that could not be read for one reason."""
    labels: Dict[Tuple[str, ...], List[str]] = {}
    gathered = []
    for one in judged:
        label, code, reason = one.unread
        if not label:
            gathered.append(one)
            continue
        key = (one.place.label, code, reason)
        if key not in labels:
            labels[key] = []
            gathered.append(one)
        if label not in labels[key]:
            labels[key].append(label)
    return [one._replace(finding=_unread_finding(
        one.place, labels[(one.place.label, *one.unread[1:])], *one.unread[1:]))
        if one.unread[0] else one for one in gathered]


# Failures of NVML, and events that the kernel logged.


def _by_nvml(facts: Facts, places: List[Place], rows: List[Row]) -> List[Judged]:
    """One finding for each place and return code."""
    by_label = {place.label: place for place in places}
    by_code = {"nvml-%d" % row["code"]: row for row in rows if facts["class"] in row["classes"]}
    found: Dict[Tuple[str, str], Judged] = {}
    for label, entry in sorted(facts["unread"].items()):
        row = by_code.get(entry["code"])
        gpu = GPU_LABEL.match(label)
        place = by_label.get(gpu.group() if gpu else "") or by_label[""]
        if row is None:
            continue
        verdict = row["verdict" if label in (*NVML_LABELS, place.label) else "figure_verdict"]
        # A label sorts before those of what is under it, so the first verdict is the worst.
        if verdict and (place.label, entry["code"]) not in found:
            found[place.label, entry["code"]] = _judged(
                place, row, row["finding"], verdict, "%s: %s" % (label, entry["reason"]), {})
    return list(found.values())


def _by_xids(facts: Facts, places: List[Place], rows: List[Row],
             nvml_rows: List[Row]) -> List[Judged]:
    """What the kernel log says of each GPU, and of those that answer no more."""
    logged = [(place, place.figures["xids"]) for place in places if place.scope == "devices"]
    orphans: Dict[str, List[Dict[str, Any]]] = {}
    for event in facts["orphan_xids"] or []:
        orphans.setdefault(event["bus_id"], []).append(event)
    for bus_id, events in orphans.items():
        logged.append((Place("orphan_xids", bus_id, "orphan_xids", "the GPU at %s, which does not "
                             "answer" % bus_id, "INDEX", {}), events))
    judged = [_unread(facts, place, "xids", nvml_rows)
              for place, events in logged if events is None]
    if facts["orphan_xids"] is None:
        judged.append(_unread(facts, places[0], "orphan_xids", nvml_rows))
    for place, events in logged:
        judged += _by_events(facts, place, events or [], rows)
    return judged


def _by_events(facts: Facts, place: Place, events: List[Dict[str, Any]],
               rows: List[Row]) -> List[Judged]:
    """One finding for each code; what is long past and over counts no more."""
    by_code = {row["code"]: row for row in rows}
    judged = []
    for code in sorted({event["code"] for event in events}):
        row = by_code.get(code, by_code[UNKNOWN_XID])
        # A GPU that does not answer is not over it, however long ago that was.
        recent = [event for event in events if event["code"] == code and (
            place.scope == "orphan_xids" or event["age_s"] is None
            or event["age_s"] <= row["recent_s"])]
        if recent:
            row = dict(row, wanted="none", found="Xid %(code)s, %(name)s: %(times)d in the kernel "
                       "log, the last %(age)s: %(text)s")
            age = recent[-1]["age_s"]
            words = {"code": code, "name": row["name"],
                     "times": sum(event.get("count", 1) for event in recent),
                     "text": recent[-1]["text"],
                     "age": "at an unknown time" if age is None else "%d s ago" % age}
            judged.append(_judged(place, row, "xid-%d" % code, row["verdict"], "%s (%s)" % (
                place.label, source_of(facts, place.label + ".xids")), words))
    return judged
