# SPDX-License-Identifier: Apache-2.0
"""The kinds of device that an endpoint could be placed on: all alike, and those that can be had."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..findings import Finding
from . import devices, keep
from .health import key_of
from .keep import Pins
from .placement import SHARE_OF_RAM, Device
from .reasons import refusal
from .releases import ON_CPU, Target
from .requests import Request

Facts = Dict[str, Any]
Kind = Tuple[Optional[str], Optional[int], bool]
"""Name, memory, and whether it is a slice of a split GPU."""


class Pool(NamedTuple):
    """Devices of one kind to choose from; none for the CPU."""

    device: Device
    target: Target
    facts: Facts
    """The host's, with the devices of this kind alone."""
    reasons: List[str]


class Others(NamedTuple):
    """What other endpoints of the host have."""

    taken: Dict[str, str]
    """Devices, by UUID, with the endpoint's name."""
    ram_bytes: int
    pids: List[int]
    """Processes that are gone when this endpoint is started."""


def ram_bytes(facts: Facts) -> int:
    """All the RAM that an engine could have; 0 where it is not known."""
    memory = facts["memory"]
    known = [memory[key] for key in ("total_bytes", "limit_bytes") if memory.get(key)]
    return min(known) if memory["total_bytes"] else 0


def on_cpu(request: Request, facts: Facts, others: Others) -> Tuple[List[Pool], List[Finding]]:
    """The CPU as a pool, or why not."""
    if request["gpus"] not in ("auto", "all", 0):
        return [], [refusal(request, "no-gpu", "gpus", "%s, and the host has no GPU"
                             % request["gpus"], "auto or 0")]
    if request["tensor_parallel"] not in ("auto", 1):
        return [], [refusal(request, "no-tensor-parallel", "tensor_parallel",
                             str(request["tensor_parallel"]),
                             "auto or 1: a model on the CPU is not split over devices")]
    total = ram_bytes(facts)
    if not total:
        return [], [refusal(request, "memory-unknown", "context", "the host's memory is not known",
                             "MemTotal in /proc/meminfo")]
    reason = "Served on the CPU: %s." % (
        "gpus is 0" if facts["class"] != "cpu" else "the host has no GPU")
    usable = max(0, int(total * SHARE_OF_RAM) - others.ram_bytes)
    device = Device("the CPU", usable, usable, "", True, 1, True)
    return [Pool(device, ON_CPU, facts, [reason])], []


def on_gpus(request: Request, facts: Facts, state: Dict[str, Any], health: Dict[str, Any],
            gpus: List[Dict[str, Any]], others: Others,
            pins: Optional[Pins]) -> Tuple[List[Pool], List[Finding]]:
    """A pool for every kind of GPU of which some can be had, and why the other kinds cannot."""
    pools, refusals = [], []
    for kind, only in _kinds(request, facts, pins):
        count: Any = 1 if kind and kind[2] else "all"
        wanted = wants(request, state, others, count, 0, pins)
        found = devices.select_devices(only, wanted, health, held(request, state, others))
        if not found["devices"]:
            refusals += found["refusals"]
            continue
        made = _pool(request, facts, only, found, gpus, others)
        if isinstance(made, Pool):
            pools.append(made)
        else:
            refusals.append(made)
    # A slice is told of only where it is all there is: it is no part of what a whole GPU is.
    return pools, refusals if pools or len(refusals) < 2 else _merged(refusals)


def _merged(refusals: List[Finding]) -> List[Finding]:
    """One refusal for all kinds of device; what is said of each stays."""
    alike = [one for one in refusals if one["id"] == refusals[0]["id"]]
    if len(alike) < len(refusals):
        return refusals
    told = dict.fromkeys(part for one in refusals for part in one["found"].split("; "))
    return [dict(refusals[0], found="; ".join(told))]


def wants(request: Request, state: Dict[str, Any], others: Others, count: Any, memory_bytes: int,
          pins: Optional[Pins]) -> Dict[str, Any]:
    """What is asked of :func:`.devices.select_devices`."""
    uuids = request["gpus"] if isinstance(request["gpus"], list) else []
    return {
        "where": request["where"], "name": request["name"], "count": count,
        "uuids": pins.gpus if pins else uuids,
        "keep": sorted(keep.devices_of(request, state)), "tensor_parallel": count != 1,
        "memory_bytes": memory_bytes, "taken": others.taken,
        # Who runs on them has them, whatever came beside.
        "share": bool(pins and pins.running),
    }


def held(request: Request, state: Dict[str, Any], others: Others) -> Dict[str, Any]:
    """Whose memory is free for this endpoint: its own, and that of those which are moved first."""
    own = keep.held(request, state)
    return {**own, "pids": own["pids"] + others.pids}


def _kinds(request: Request, facts: Facts,
           pins: Optional[Pins]) -> Iterator[Tuple[Optional[Kind], Facts]]:
    """The host as it is with the devices of one kind alone, kind by kind.

    Whoever names devices gets those, so all of them stay in.
    """
    if pins or isinstance(request["gpus"], list):
        yield None, facts
        return
    kinds: Dict[Kind, None] = {}
    for device, piece in pieces(facts).values():
        if piece or not (device["mig"] or {}).get("enabled"):
            of = piece or device
            kinds[of["name"], of["memory_total_bytes"], piece is not None] = None
    if len([kind for kind in kinds if not kind[2]]) == len(kinds) < 2:
        yield None, facts
        return
    if request["gpus"] not in ("auto", "all", 1) or request["tensor_parallel"] not in ("auto", 1):
        kinds = {kind: None for kind in kinds if not kind[2]} or {(None, None, False): None}
    for kind in sorted(kinds, key=lambda kind: (kind[2], str(kind[0]), kind[1] or 0)):
        yield kind, _only(facts, kind)


def _only(facts: Facts, kind: Kind) -> Facts:
    """The host with the devices or slices of this kind; whole GPUs that are split stay told."""
    found = []
    for device in facts["devices"]:
        mig = device["mig"] or {}
        slices = [piece for piece in mig.get("slices") or []
                  if kind == (piece["name"], piece["memory_total_bytes"], True)]
        if kind == (device["name"], device["memory_total_bytes"], False) or slices or (
                mig.get("enabled") and kind[0] is None):
            found.append({**device, "mig": {**mig, "slices": slices} if mig else device["mig"]})
    return {**facts, "devices": found}


def pieces(facts: Facts) -> Dict[str, Tuple[Dict[str, Any], Optional[Dict[str, Any]]]]:
    """Every device and every slice by its UUID."""
    found: Dict[str, Tuple[Dict[str, Any], Optional[Dict[str, Any]]]] = {}
    for device in facts["devices"]:
        found[key_of(device)] = (device, None)
        for piece in (device["mig"] or {}).get("slices") or []:
            if piece["uuid"]:
                found[piece["uuid"]] = (device, piece)
    return found


def _pool(request: Request, facts: Facts, only: Facts, found: Dict[str, Any],
          gpus: List[Dict[str, Any]], others: Others) -> Any:
    """The pool of the devices that were found, or why there is none."""
    by_uuid = pieces(only)
    first, piece = by_uuid[found["devices"][0]]
    of = piece or first
    shared = bool(first["unified_memory"]) and not piece
    row = next((row for row in gpus if row["nvml_name"] == first["name"]), None)
    if shared:
        total = ram_bytes(facts)
        usable = max(0, int(total * SHARE_OF_RAM) - others.ram_bytes)
    else:
        total = (of["memory_total_bytes"] or 0) - (0 if piece else _driver_bytes(first, row))
        usable = total
    if total <= 0:
        return refusal(request, "memory-unknown", "gpus", "the memory of %s is not known"
                        % (of["name"] or "the device"),
                        "MemTotal in /proc/meminfo" if shared else "what NVML tells of it")
    name = of["name"] or "a GPU without a name"
    chosen = set(found["devices"])
    same = [device for device in only["devices"]
            if pieces({"devices": [device]}).keys() & chosen]
    device = Device(name, total, usable, first["capability"] or "", shared, len(chosen),
                    piece is not None)
    target = Target("gpu", name, device.capability, bool(row and row["datacenter"]))
    return Pool(device, target, {**facts, "devices": same}, found["left_out"])


def _driver_bytes(device: Dict[str, Any], row: Optional[Dict[str, Any]]) -> int:
    """What of NVML's total is the driver's own, and no CUDA program's."""
    if device["memory_reserved_bytes"] is not None:
        return int(device["memory_reserved_bytes"])
    if row and row["reserved_mib"]:
        return int(row["reserved_mib"]) * 2**20
    # Seen: 0.4 to 0.6 % on H100 and H200; twice that where nobody tells.
    return int((device["memory_total_bytes"] or 0) * 0.012)
