# SPDX-License-Identifier: Apache-2.0
"""Which GPUs an endpoint gets: free, well, alike and near to each other; and why not the others."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from ..findings import Finding, finding
from .health import VERDICTS, key_of, size, title_of

Facts = Dict[str, Any]
Wanted = Dict[str, Any]


class Candidate(NamedTuple):
    """A GPU, or a MIG slice of one, that an endpoint may get."""

    uuid: str
    title: str
    model: Tuple[Optional[str], Optional[int]]
    """Name and memory; only equals work together."""
    clique: Any
    place: Tuple[str, str]
    verdict: str
    free_bytes: Optional[int]
    """What it has free for this endpoint, what its own engine holds now included."""
    why_out: str
    """Why it cannot be had, empty where it can."""


def select_devices(
    facts: Facts, wanted: Wanted, health: Dict[str, Any], held: Optional[Dict[str, Any]] = None
) -> Dict[str, Any]:
    """The devices for one endpoint: all that are wanted, or none and why.

    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param wanted: ``where`` and ``name`` of the endpoint; ``count``, a number or ``all``;
        ``uuids`` that the user names, else none, and ``keep``, those it has now (both lists);
        ``tensor_parallel``: they work as one, so NVLink counts; ``memory_bytes``, the least that
        each must have free; ``share``: others may hold memory of them too; ``taken``: devices of
        other endpoints, by UUID, with the endpoint's name.
    :param health: what :func:`.health.host_health` returned.
    :param held: ``{pids: [...], bytes: {uuid: n}}`` of the endpoint as it runs now: its processes,
        and what it is known to hold of devices that do not tell (it may be left out). Both are free
        for it.
    :returns: ``{devices: [uuid], reasons: [sentence], left_out: [sentence], refusals: [finding]}``;
        ``left_out`` are those of the reasons that are of other devices. The order of the
        devices in the facts makes no difference.
    """
    pinned = list(dict.fromkeys(wanted["uuids"]))
    everything = sorted(_candidates(facts, wanted, health, held or {}, len(pinned)),
                        key=lambda one: one.place)
    missing = sorted(set(pinned) - {one.uuid for one in everything})
    if missing:
        return _refused(wanted, "unknown", "the host has no %s" % ", ".join(missing),
                        "some of: %s" % (", ".join(one.uuid for one in everything) or "none"))
    pool = [one for one in everything if not pinned or one.uuid in pinned]
    count = len(pinned) or (None if wanted["count"] == "all" else wanted["count"])
    if count == 0:
        return {"devices": [], "reasons": ["No GPU is wanted."], "left_out": [], "refusals": []}
    fit = [one for one in pool if not one.why_out]
    near = wanted["tensor_parallel"] and _has_nvlink(facts)
    chosen = _choose(fit, count, near, set(wanted["keep"]))
    if not chosen:
        return _too_few(wanted, pool, fit, count, near, bool(pinned))
    reasons = ["%s: %s." % (one.title, _why_taken(one, wanted)) for one in chosen]
    if wanted["tensor_parallel"] and len(chosen) > 1:
        reasons.append("They are NVLink peers of each other." if near else
                       "No GPU here has NVLink; they talk over PCI Express.")
    left = ["%s: left out: %s." % (one.title, one.why_out) for one in pool if one.why_out]
    return {"devices": [one.uuid for one in chosen], "reasons": reasons + left,
            "left_out": left, "refusals": []}


def _candidates(facts: Facts, wanted: Wanted, health: Dict[str, Any], held: Dict[str, Any],
                pinned: int) -> List[Candidate]:
    """Every whole GPU and, where one device is enough, every MIG slice."""
    found = []
    single = (pinned or wanted["count"]) == 1
    for device in facts["devices"]:
        slices = (device["mig"] or {}).get("slices") or []
        split = bool((device["mig"] or {}).get("enabled"))
        found.append(_candidate(facts, wanted, health, held, device, None,
                                "it is split by MIG; only its slices can be had" if split else ""))
        found += [_candidate(facts, wanted, health, held, device, piece,
                             "" if single else "a MIG slice works alone only")
                  for piece in slices if piece["uuid"]]
    return found


def _candidate(facts: Facts, wanted: Wanted, health: Dict[str, Any], held: Dict[str, Any],
               device: Dict[str, Any], piece: Optional[Dict[str, Any]],
               why_out: str) -> Candidate:
    of = piece or device
    # Memory that all processes of the host share is nobody's in particular.
    shared = device["unified_memory"] and not piece
    holders = device["holders"]
    if piece and holders is not None:
        holders = [one for one in holders if one["gpu_instance"] == piece["gpu_instance"]]
    uuid = key_of(device) if piece is None else piece["uuid"]
    pids = held.get("pids") or []
    others = [one for one in holders or [] if one["pid"] not in pids]
    free = facts["memory"]["available_bytes"] if shared else of["memory_free_bytes"]
    if free is not None:
        own = [one["bytes"] for one in holders or [] if one["pid"] in pids]
        # Where the device does not tell what each holds, what is known of the endpoint counts.
        free += (held.get("bytes") or {}).get(uuid, 0) if holders is None or None in own else sum(
            own)
    verdict = health["devices"].get(key_of(device), "bad")
    # A whole GPU is gone with any slice of it, and a slice with the whole.
    taken = wanted["taken"].get(uuid) or wanted["taken"].get(key_of(device))
    title = title_of(device) if piece is None else "slice %s of %s" % (uuid, title_of(device))
    label = "devices[%d]" % device["index"]
    objections = (
        (why_out, why_out),
        (taken, "it is for the endpoint %s" % taken),
        (verdict == "bad", "its health is bad: %s" % _ailments(health, device)),
        (free is None and not wanted["share"], "its free memory is not known: %s" % _reason(
            facts, "memory.available_bytes" if shared else label + ".memory_free_bytes")),
        (holders is None and not shared and not wanted["share"],
         "who holds memory of it is not known: %s" % _reason(facts, label + ".holders")),
        (others and not shared and not wanted["share"], "; ".join(map(_holding, others))),
        ((free or 0) < wanted["memory_bytes"], "%s free, and %s are needed" % (
            size(free or 0), size(wanted["memory_bytes"]))),
    )
    nvlink = device["nvlink"] or {}
    return Candidate(
        uuid, title, (of["name"], of["memory_total_bytes"]), nvlink.get("clique"),
        (device["bus_id"] or "", uuid), verdict, free,
        next((words for holds, words in objections if holds), ""))


def _choose(fit: List[Candidate], count: Optional[int], near: bool,
            keep: Set[str]) -> List[Candidate]:
    """The best of the groups that are large enough; ``None`` for the count takes a whole group."""
    groups: Dict[Any, List[Candidate]] = {}
    for one in fit:
        # A device that is in no clique is near to none but itself.
        clique = (one.uuid if one.clique is None else one.clique) if near else None
        groups.setdefault((one.model, clique), []).append(one)

    def rank(one: Candidate) -> Tuple[Any, ...]:
        # In whole GiB, so that a few bytes more or less do not move an endpoint.
        return (one.uuid not in keep, VERDICTS.index(one.verdict),
                -((one.free_bytes or 0) // 2**30), one.place)

    choices = [sorted(group, key=rank)[:count] for group in groups.values()]
    choices = [one for one in choices if len(one) == (count or len(one))]
    best = min(choices, default=[], key=lambda chosen: (
        -sum(one.uuid in keep for one in chosen), -len(chosen),
        sum(one.verdict != "ok" for one in chosen), [rank(one) for one in chosen]))
    # In the order of the bus, so that the same devices under another load are the same answer.
    return sorted(best, key=lambda one: one.place)


def _has_nvlink(facts: Facts) -> bool:
    # nvidia-smi tells the peers and not the links.
    links = [one["nvlink"] or {} for one in facts["devices"]]
    return any(one.get("links") or one.get("peers") for one in links)


def _why_taken(one: Candidate, wanted: Wanted) -> str:
    kept = "kept, it has it already; " if one.uuid in wanted["keep"] else ""
    return "%s%s free, its health is %s" % (kept, size(one.free_bytes or 0), one.verdict)


def _holding(holder: Dict[str, Any]) -> str:
    return "pid %s of %s (%s) holds %s" % (
        holder["pid"], holder["user"], holder["command"],
        "an unknown amount" if holder["bytes"] is None else size(holder["bytes"]))


def _reason(facts: Facts, label: str) -> str:
    """Why a figure is null: its own entry or that of what it is in."""
    while label and label not in facts["unread"]:
        label = label.rpartition(".")[0]
    return str(facts["unread"][label]["reason"]) if label else "no reason is given"


def _ailments(health: Dict[str, Any], device: Dict[str, Any]) -> str:
    """What is bad of the device, or of the whole host."""
    found = [one["found"] for one in health["findings"]
             if one["severity"] == "error" and one["subject"] in ("this host", title_of(device))]
    return "; ".join(found) or "it was not judged"


# Refusals.


def _too_few(wanted: Wanted, pool: List[Candidate], fit: List[Candidate], count: Optional[int],
             near: bool, pinned: bool) -> Dict[str, Any]:
    """One refusal that says of every device why it is not among them."""
    told = ["%s: %s" % (one.title, one.why_out or "it fits, %s" % _kind(one, near))
            for one in pool] or ["no device is on this host"]
    kind = "pinned" if pinned else "too-few"
    if count is not None and len(fit) >= count:
        models: Dict[Any, int] = {}
        for one in fit:
            models[one.model] = models.get(one.model, 0) + 1
        kind = "no-clique" if near and max(models.values()) >= count else "unlike"
    needed = "of one model" + (" and in one NVLink clique" if near else "")
    return _refused(wanted, kind, "; ".join(told), "%s that can be had%s" % (
        "any device" if count is None else "%d device%s" % (count, "" if count == 1 else "s"),
        "" if count in (None, 1) else ", " + needed))


def _kind(one: Candidate, near: bool) -> str:
    name = "a model %s" % (one.model[0] or "without a name")
    return "%s, in NVLink clique %s" % (name, one.clique) if near else name


def _refused(wanted: Wanted, kind: str, found: str, needed: str) -> Dict[str, Any]:
    subject = "%s.gpus" % wanted["where"]
    refusal: Finding = finding(
        "devices-" + kind, subject, found, needed,
        "change %s, or free a device: stop what holds it, or mend what is bad" % subject)
    return {"devices": [], "reasons": [], "left_out": [], "refusals": [refusal]}
