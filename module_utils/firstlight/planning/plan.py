# SPDX-License-Identifier: Apache-2.0
"""What runs where and how: one plan, or the reasons against one, for each endpoint asked for."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .. import canary
from ..findings import Finding
from . import (
    devices,
    flags,
    healing,
    keep,
    known_issues,
    kv,
    memory,
    parallelism,
    placement,
    pools,
    reasons,
    releases,
    served,
    triton,
    way_in,
)
from .command import engine_command
from .healing import Adjustment
from .keep import Pins
from .placement import Engine, Placement
from .pools import Others, Pool
from .requests import Request
from .start_budget import start_budget

Plan = Dict[str, Any]

PARALLEL_REQUESTS = 4
# The longest context that is looked for where a model does not say what it was trained for.
UNKNOWN_CONTEXT = 2**24
GIB = 2**30


class Refused(Exception):
    """No plan for this request; carries the findings that say why."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("; ".join(one["found"] for one in findings))
        self.findings = findings


class Host(NamedTuple):
    """What is known of the host."""

    facts: Dict[str, Any]
    models: Dict[str, Any]
    state: Dict[str, Any]
    catalog: Dict[str, Any]
    health: Dict[str, Any]
    library_path: triton.LibraryPath
    adjustments: Dict[str, List[Adjustment]]
    """What was learned in this run, by the endpoint's name."""


class Option(NamedTuple):
    """One way to serve the model on one kind of device."""

    pool: Pool
    choice: releases.Choice
    engine: Engine
    flags: List[str]
    placed: Placement
    context: int
    reckoned: int
    """The context that memory is reckoned for."""
    uuids: List[str]
    env: Dict[str, str]
    adjustments: List[Adjustment]
    reasons: List[str]


def deployment_plan(
    requests: List[Request],
    facts: Dict[str, Any],
    models: Dict[str, Any],
    state: Dict[str, Any],
    catalog: Dict[str, Any],
    health: Dict[str, Any],
    library_path: Optional[triton.LibraryPath] = None,
    adjustments: Optional[Dict[str, List[Adjustment]]] = None,
) -> Dict[str, Any]:
    """Plans for one host.

    :param requests: as :func:`.requests.normalise` gives them.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param models: by path, or by the request's place or the repository, as ``model_info``
        describes them. The canary needs no reading.
    :param state: what ``endpoint_info`` returned.
    :param catalog: the rows of the catalogs by name, and ``environments: {lock name: digest}``.
    :param health: what :func:`.health.host_health` returned.
    :param library_path: what ``host_checks`` or ``linker_cache`` returned; ``None`` where nobody
        looked: then the host is taken for well.
    :param adjustments: what :func:`.healing.healing` learned of starts that just failed, by the
        endpoint's name; of the others what their passports have holds.
    :returns: ``{endpoints: plans, refusals: findings}``. The same input gives the same output, and
        a plan that an endpoint runs by stays while it fits and nothing else is asked for.
    """
    made: Dict[int, Plan] = {}
    host = Host(facts, models, state, catalog, health, library_path or triton.NOTHING,
                adjustments or {})
    others = Others({}, 0, [])
    for index, request in enumerate(requests):
        kept = _kept(request, host, others)
        if kept:
            made[index] = kept
            others = _with(others, kept, [], facts)
    # What another endpoint has, even when it does not run now, is not given away.
    reserved = keep.reserved(requests, state)
    refusals: List[Finding] = []
    for index, request in enumerate(requests):
        if index in made:
            continue
        away = {uuid: name for uuid, name in reserved.items() if name != request["name"]
                and name not in [one["name"] for one in made.values()]}
        # Who names devices has them, wherever it stands in the list.
        away.update((uuid, other["name"]) for other in requests
                    if other is not request and isinstance(other["gpus"], list)
                    for uuid in other["gpus"])
        for uuid in request["gpus"] if isinstance(request["gpus"], list) else []:
            away.pop(uuid, None)
        mine = others._replace(taken={**away, **others.taken})
        try:
            made[index] = _one(request, host, mine, None)
        except Refused as refused:
            refusals.extend(refused.findings)
            continue
        others = _with(others, made[index], keep.held(request, state)["pids"], facts)
    return {"endpoints": [made[index] for index in sorted(made)], "refusals": refusals}


def _with(others: Others, plan: Plan, pids: List[int], facts: Dict[str, Any]) -> Others:
    """What other endpoints have, this plan's included.

    :param pids: of the endpoint as it runs now: it is moved before those that come after it.
    """
    taken = dict(others.taken)
    for uuid in plan["gpus"]:
        taken[uuid] = plan["name"]
    shared = facts["class"] in ("cpu", "jetson", "unified") or not plan["gpus"]
    return Others(taken, others.ram_bytes + (plan["memory"]["total_bytes"] if shared else 0),
                  others.pids + pids)


def _kept(request: Request, host: Host, others: Others) -> Optional[Plan]:
    """The plan that the endpoint has, where the same choices still make the same plan."""
    # What just failed is not kept as it is.
    pins = None if request["name"] in host.adjustments else keep.pins(request, host.state)
    if pins is None:
        return None
    try:
        plan = _one(request, host, others, pins)
    except Refused:
        return None
    return plan if plan["hash"] == pins.hash else None


def _one(request: Request, host: Host, others: Others, pins: Optional[Pins]) -> Plan:
    try:
        model = served.served(request, host.models, host.state["root"])
    except KeyError:
        raise Refused([reasons.refusal(
            request, "model-unknown", "model", "nothing is known of %s" % request["model"],
            "a model that was read, or one that a profile describes")]) from None
    missing = served.gaps(request, model)
    if missing:
        raise Refused(missing)
    new = host.adjustments.get(request["name"])
    if new:
        host = host._replace(facts=healing.without(host.facts, new))
    if host.facts["class"] == "cpu" or request["gpus"] == 0:
        found, refusals = pools.on_cpu(request, host.facts, others)
    else:
        found, refusals = pools.on_gpus(request, host.facts, host.state, host.health,
                                        host.catalog["gpus"], others, pins)
    options: List[Option] = []
    against: List[Finding] = []
    for pool in found:
        try:
            options.append(_option(request, host, model, pool, others, pins))
        except Refused as refused:
            # Why the others of the kind cannot help.
            left = " ".join(pool.reasons) if pool.target.kind == "gpu" else ""
            against += [dict(one, evidence=one["evidence"] or left) for one in refused.findings]
    if not options:
        # Two kinds of device may say the same.
        told = against + refusals
        raise Refused([one for index, one in enumerate(told) if one not in told[:index]])
    return _assemble(request, host, model, min(
        options, key=lambda option: _rank(option, request["gpus"] == "all")), pins)


def _rank(option: Option, everything: bool) -> Tuple[Any, ...]:
    """The context that is wanted, on as few and as small devices as give it; or on most."""
    given = option.context
    count, device = option.placed.layout.devices, option.pool.device
    return (-count if everything else 0, -given, count, device.limit_bytes,
            option.pool.device.title)


def _option(request: Request, host: Host, model: Plan, pool: Pool, others: Others,
            pins: Optional[Pins]) -> Option:
    """The model on this kind of device."""
    try:
        choice = releases.choose(request, host.facts, host.state, model, pool.target, host.catalog)
    except releases.NoRelease as none:
        raise Refused([reasons.no_release(request, host.facts, host.state, model, pool.target,
                                          host.catalog, none.against)]) from None
    row = choice.row
    new = host.adjustments.get(request["name"])
    learned = healing.of_release(healing.learned(request, host.state, new, model["fingerprint"],
                                                 host.catalog["log_signatures"]),
                                 new is not None, request, host.state, row)
    wrong = flags.check(request["extra_args"], row, request["where"])
    if wrong:
        raise Refused([reasons.refusal(request, one.kind, "extra_args", " ".join(one.flags),
                                       one.wanted, one.remedy) for one in wrong])
    try:
        way = triton.way(request, row, model, pool.device.capability or "", host.library_path,
                         host.catalog["without_triton"],
                         pins.flags if pins and pins.running else None)
    except triton.NoWay as none:
        raise Refused(none.findings) from None
    issues = _issues(request, host, row, model, pool, None)
    given = [flags.spelled(one) for one in request["extra_args"]]
    added = [flag for flag in way.flags if flag not in given] + [
        flag for issue in issues for flag in issue["action"].get("add_flags", [])]
    if row["engine"] == "vllm" and pool.target.kind == "cpu" and "--enforce-eager" not in given:
        # Its compiler takes minutes there, and a compiler of C++ that an image may not have.
        added.append("--enforce-eager")
    if model["custom_code"] and "--trust-remote-code" in row["flags"] and (
            "--trust-remote-code" not in given):
        # It was allowed by name, or its findings would have ended the run.
        added.append("--trust-remote-code")
    if healing.value_of(learned, "eager") and "--enforce-eager" not in added + given:
        added.append("--enforce-eager")
    eager = row["engine"] != "vllm" or "--enforce-eager" in added + given
    engine = Engine(row, choice.kernel, memory.costs_of(
        "vllm_cpu" if row["engine"] == "vllm" and pool.target.kind == "cpu" else row["engine"],
        host.catalog["engine_costs"]), flags.settings(request["extra_args"], row["engine"]),
        eager, {}, pool.device.title)
    engine = engine._replace(seen=_seen(request, host, model, engine, pool))
    told = choice.reasons + way.reasons + pool.reasons + [healing.said(one) for one in learned]
    if way.one_device:
        pool = pool._replace(device=pool.device._replace(
            available=min(1, pool.device.available)))
    placed, context, room = _place(request, host, model, pool, engine, others, pins, told,
                                     healing.value_of(learned, "context"))
    uuids = _chosen(request, host, pool, placed, room, others, pins, told)
    return Option(pool, choice, engine, added, placed, context, room, uuids, way.env, learned,
                  told)


# Placing.


def _seen(request: Request, host: Host, model: Plan, engine: Engine,
          pool: Pool) -> placement.Seen:
    """Observed memory, where the passport is of the same model, release, layout and flags."""
    found = {}
    split = keep.layout_of(request, host.state)
    layout = memory.Layout(*split) if split else None
    if layout and layout.devices <= pool.device.available:
        for settings in placement.batches(model, pool.device, engine):
            seen = keep.observed(request, host.state, _identity(
                request, model, engine, layout, settings))
            if seen:
                found[layout, settings] = seen
    return found


def _identity(request: Request, model: Plan, engine: Engine, layout: memory.Layout,
              settings: memory.Settings) -> Dict[str, Any]:
    """What has to be equal for figures that were seen to hold again."""
    return {
        "engine": engine.row["engine"], "engine_version": engine.row["version"],
        "tensor_parallel": layout.tensor_parallel, "pipeline_parallel": layout.stages,
        "device": engine.name, "extra_args": request["extra_args"],
        "batched_tokens": settings.batched_tokens, "sequences": settings.sequences,
        "fingerprint": model["fingerprint"],
    }


def _counts(request: Request, pool: Pool, pins: Optional[Pins]) -> List[int]:
    """How many devices the plan may take."""
    asked, split = request["gpus"], request["tensor_parallel"]
    if pins:
        return [max(1, len(pins.gpus))]
    if isinstance(asked, list):
        return [len(asked)]
    if asked not in ("auto", "all", 0):
        return [asked]
    if asked == "auto" and split != "auto":
        return [split]
    return list(range(1, pool.device.available + 1))


def _place(request: Request, host: Host, model: Plan, pool: Pool, engine: Engine, others: Others,
           pins: Optional[Pins], told: List[str],
           most_learned: Optional[int]) -> Tuple[Placement, int, int]:
    """The placement, the context in tokens, and the context that memory is reckoned for."""
    device, asked = pool.device, request["context"]
    counts = _counts(request, pool, pins)
    if min(counts) > device.available:
        raise Refused(_too_many(request, host, model, pool, engine, others, min(counts)))
    trained = model["geometry"]["context"]
    automatic = placement.AUTO_CONTEXT_GPU if device.capability else placement.AUTO_CONTEXT_CPU
    most = trained or UNKNOWN_CONTEXT
    wanted = min(most, automatic) if asked == "auto" else asked
    split = request["tensor_parallel"] if request["tensor_parallel"] != "auto" else None
    if pins:
        found = _pinned(model, pool, engine, pins, most)
    else:
        found = list(placement.placements(model, device, engine, counts, split, most))
    if not found:
        raise Refused([reasons.no_layout(request, model, engine, counts, device)])
    placed = placement.choose(found, wanted, request["gpus"] == "all")
    # Memory is reckoned as before: what was learned is that the engine takes more of it.
    room = min(placed.fits, wanted) if asked == "auto" else asked
    context = min(room, most_learned or room) if asked == "auto" else asked
    if pins:
        context = pins.context
    if context < 1 or context > placed.fits:
        raise Refused([reasons.does_not_fit(request, model, device, engine, placed, context,
                                            trained)])
    told.append(reasons.of_layout(placed, device, model, engine.kernel))
    told.append(reasons.of_context(asked, context, trained, placed, device, most_learned))
    if asked == "auto" and not most_learned:
        told += reasons.of_more_devices(model, device, engine, placed, context, wanted)
    told.append(reasons.of_memory(placed, engine, flags.unreckoned(request["extra_args"])))
    return placed, context, max(context, room) if most_learned else context


def _pinned(model: Plan, pool: Pool, engine: Engine, pins: Pins, most: int) -> List[Placement]:
    """The placement that the endpoint has. What ran has shown that it fits."""
    layout = memory.Layout(pins.tensor_parallel, pins.pipeline_parallel)
    # A passport may say anything; what is no layout of its devices is not looked for among all.
    if layout.devices > max(1, len(pins.gpus)) or layout not in parallelism.layouts(
            engine.row["engine"], model, engine.kernel, layout.devices):
        return []
    placed = [placement.place(model, pool.device, engine, layout, settings, most,
                              pins.utilisation)
              for settings in placement.batches(model, pool.device, engine)
              if (settings.batched_tokens, settings.sequences)
              == (pins.batched_tokens, pins.sequences)]
    return [one._replace(fits=max(one.fits, pins.context)) for one in placed
            if pins.context <= most and (pins.running or (
                kv.sequence_bytes(one.cache, pins.context) <= one.room
                and placement.memory_of(one, pins.context, pool.device)["total_bytes"]
                <= pool.device.usable_bytes))]


def _too_many(request: Request, host: Host, model: Plan, pool: Pool, engine: Engine,
              others: Others, count: int) -> List[Finding]:
    """More devices than can be had: of this host, because of others, or of any one host."""
    if count <= len(host.facts["devices"]):
        wanted = pools.wants(request, host.state, others, count, 0, None)
        found = devices.select_devices(host.facts, wanted, host.health,
                                       pools.held(request, host.state, others))
        if found["refusals"]:
            return list(found["refusals"])
    of_kind = [one for one in host.facts["devices"] if one["name"] == pool.device.title]
    whole = pool.device._replace(available=max(len(of_kind), pool.device.available))
    return [reasons.several_nodes(request, model, whole, engine, count)]


def _chosen(request: Request, host: Host, pool: Pool, placed: Placement, context: int,
            others: Others, pins: Optional[Pins], told: List[str]) -> List[str]:
    """The devices themselves, now that it is known how many and what each must have free."""
    if not pool.device.capability:
        return []
    needed = 0
    # Free memory of a shared one moves with the page cache: its limit has been held to.
    if not (pins and pins.running) and not pool.device.shared:
        needed = placement.memory_of(placed, context, pool.device)["total_bytes"]
    wanted = pools.wants(request, host.state, others, placed.layout.devices, needed, pins)
    found = devices.select_devices(pool.facts, wanted, host.health,
                                   pools.held(request, host.state, others))
    if not found["devices"]:
        raise Refused(found["refusals"])
    told += [reason for reason in found["reasons"] if reason not in found["left_out"]]
    return list(found["devices"])


# What is known to break.


def _issues(request: Request, host: Host, row: Dict[str, Any], model: Plan, pool: Pool,
            tensor_parallel: Optional[int]) -> List[Dict[str, Any]]:
    if pool.target.kind == "cpu" and row["engine"] != "vllm":
        return []
    case = releases.case_of(request, host.facts, row, model, pool.device.capability,
                            tensor_parallel)
    return known_issues.that_hold(case, host.catalog["known_issues"])


def _issue_env(issues: List[Dict[str, Any]], row: Dict[str, Any], limit_s: int) -> Dict[str, str]:
    """Variables that are needed; none that the release does not know."""
    values = {"start_budget_s": limit_s}
    wanted = {key: value % values for issue in issues
              for key, value in issue["action"].get("set_env", {}).items()}
    never = {key for issue in issues for key in issue["action"].get("unset_env", [])}
    return {key: value for key, value in wanted.items()
            if key in row["environment"] and key not in never}


# The plan.

NOT_DECIDED = ("hash", "oracle", "packages", "memory", "beside", "trial", "start", "asked",
               "adjustments", "known_issues", "reasons")
"""Keys of a plan that its hash does not cover."""


def plan_hash(plan: Plan) -> str:
    """The identity of a plan: a hash of its decisions. Facts and reasons are not part of it."""
    decided = {key: value for key, value in plan.items() if key not in NOT_DECIDED}
    decided["model"] = {key: value for key, value in plan["model"].items()
                        if key not in served.BESIDE}
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _assemble(request: Request, host: Host, model: Plan, option: Option,
              pins: Optional[Pins]) -> Plan:
    row, placed = option.choice.row, option.placed
    packages = _packages(request, host, row, option.reasons)
    issues = _issues(request, host, row, model, option.pool, placed.layout.tensor_parallel)
    start = _start(request, host, model, option)
    if pins:
        start["limit_s"] = pins.start_limit_s
    reckoned = placement.memory_of(placed, option.reckoned, option.pool.device)
    env = {**option.choice.env, **option.env, **_issue_env(issues, row, start["limit_s"]),
           **_cpu_env(row, reckoned), **healing.environment(option.adjustments)}
    last = keep.last_plan(request, host.state)
    for port in _engine_ports(request, pins, last):
        plan = _decisions(request, host, model, option, port)
        plan["start_timeout_s"] = start["limit_s"]
        plan["env"] = dict(env)
        if plan["cache"] and "VLLM_CACHE_ROOT" in row["environment"]:
            plan["env"]["VLLM_CACHE_ROOT"] = plan["cache"]
        plan["command"] = engine_command(plan)
        plan["hash"] = plan_hash(plan)
        if plan["hash"] == last.get("hash"):
            break
    plan["oracle"] = canary.oracle() if model["kind"] == "canary" else None
    plan["packages"] = packages + (
        way_in.packages_missing(host.state) if plan["way_in"] else [])
    plan["memory"] = reckoned
    plan["beside"] = _beside(plan, last, option, host.facts)
    plan["trial"] = None
    plan["start"] = start
    plan["asked"] = {key: request[key] for key in keep.ASKED}
    plan["adjustments"] = option.adjustments
    plan["known_issues"] = [issue["id"] for issue in issues]
    plan["reasons"] = option.reasons + [reasons.of_start(start)] + [
        known_issues.said(issue) for issue in issues
        if issue["action"].get("add_flags")
        or plan["env"].keys() & issue["action"].get("set_env", {}).keys()]
    return plan


def _cpu_env(row: Dict[str, Any], reckoned: Dict[str, Any]) -> Dict[str, str]:
    """What vLLM on a CPU is told by variables: how large its cache is, and which cores it has."""
    if "VLLM_CPU_KVCACHE_SPACE" not in row["environment"]:
        return {}
    return {"VLLM_CPU_KVCACHE_SPACE": str(reckoned["kv_bytes"] // GIB),
            "VLLM_CPU_OMP_THREADS_BIND": "auto"}


def _beside(plan: Plan, last: Plan, option: Option, facts: Dict[str, Any]) -> bool:
    """Whether the engine can come up and be proven while the last one still serves.

    It has a port of its own then, and its devices have memory for both as they are now.
    """
    if not plan["way_in"] or plan["runtime"] != "docker":
        return False
    if last and (not last.get("way_in") or last.get("engine_port") == plan["engine_port"]):
        return False
    needed = plan["memory"]["total_bytes"]
    if not plan["gpus"]:
        free = [facts["memory"].get("available_bytes")]
    elif option.pool.device.shared:
        return False
    else:
        by_uuid = pools.pieces(facts)
        found = [by_uuid[one] for one in plan["gpus"]]
        free = [(piece or device)["memory_free_bytes"] for device, piece in found]
    return all(type(one) is int and one >= needed for one in free)


def _decisions(request: Request, host: Host, model: Plan, option: Option,
               engine_port: int) -> Plan:
    """What the hash covers."""
    row, placed, root = option.choice.row, option.placed, host.state["root"]
    own = releases.is_own(request)
    runtime = "native" if own else row["runtime"]
    locked = bool(row["lock"]) and not own
    environment = "%s-%s-%s" % (row["package"], row["version"], host.catalog["environments"][
        row["lock"]][:8]) if locked else ""
    image, entrypoint, user = releases.image_of(request, row)
    devices = placed.layout.devices
    return {
        "name": request["name"],
        "engine": row["engine"],
        "engine_version": row["version"],
        "runtime": runtime,
        "image": image,
        "entrypoint": entrypoint,
        "user": user,
        "engine_python": request["engine_python"] or "",
        "engine_binary": request["engine_binary"] or "",
        "package": row["package"] if locked else "",
        "environment": environment,
        "venv": posixpath.join(root, "venvs", environment) if locked else "",
        "lock": row["lock"] if locked else "",
        "launcher": row["launcher"] if locked else "",
        "dialect": row["dialect"],
        "model": model,
        "bind": request["bind"],
        "port": request["port"],
        **_ways(request, engine_port),
        "listen": "0.0.0.0" if runtime == "docker" else "127.0.0.1",
        # Ranks talk over it (vllm/distributed/device_communicators/shm_broadcast.py).
        "shm_bytes": _shared_memory(option, devices)
        if runtime == "docker" and row["engine"] == "vllm" else 0,
        "context": option.context,
        "parallel": PARALLEL_REQUESTS,
        "tensor_parallel": placed.layout.tensor_parallel,
        "pipeline_parallel": placed.layout.stages,
        "device": option.pool.device.title,
        "gpus": option.uuids,
        "utilisation": placed.utilisation,
        "batched_tokens": placed.settings.batched_tokens,
        "sequences": placed.settings.sequences,
        "cache": _cache_path(request, host, row, model, placed, option.uuids),
        "flags": option.flags + _own_flags(row, option.uuids, model, request["extra_args"]),
        "extra_args": request["extra_args"],
        # Only where there are some, so that what serves without any stays as it is.
        **({"wheels": request["wheels"]} if request.get("wheels") else {}),
    }


def _shared_memory(option: Option, devices: int) -> int:
    return max((1 + devices) * GIB,
               int(healing.value_of(option.adjustments, "shared_memory", 0)))


def _engine_ports(request: Request, pins: Optional[Pins], last: Plan) -> Tuple[int, ...]:
    """The ports that the engine may get, best first.

    Behind a way in there are two, so that the next engine can come up beside this one: the port of
    the plan that it has is tried first, and is not taken where the plan is another.
    """
    if not way_in.wanted(request["bind"]):
        return (request["port"],)
    inner = way_in.inner_ports(request["port"], request["engine_port"])
    taken = pins.engine_port if pins else last.get("engine_port")
    if taken not in inner:
        return inner[:1]
    return (taken,) if pins else (taken, *(one for one in inner if one != taken))


def _ways(request: Request, engine_port: int) -> Plan:
    """Where the engine listens, and where people ask: it, or the proxy that has key and TLS."""
    wanted = way_in.wanted(request["bind"])
    certificate = request["tls_certificate"] or ""
    return {
        "engine_port": engine_port,
        "url": "http://127.0.0.1:%d" % engine_port,
        "way_in": wanted,
        "public_url": "%s://%s" % ("https" if wanted else "http",
                                   way_in.address(request["bind"], request["port"])),
        "tls": "none" if not wanted else "given" if certificate else "self-signed",
        "tls_certificate": certificate,
        "tls_key": request["tls_key"] or "",
    }


def _own_flags(row: Dict[str, Any], uuids: List[str], model: Plan,
               given: List[str]) -> List[str]:
    """Flags that put llama.cpp on GPUs, or on as much of the CPU as does it good."""
    if row["engine"] != "llama_cpp":
        return []
    if not uuids:
        # It is so small that more threads only wait for each other, and they do so awake.
        alone = model["kind"] == "canary" and "--threads" in row["flags"] and not {
            "--threads", "-t"} & {flags.spelled(one) for one in given}
        return ["--threads", "1"] if alone else []
    found = ["--n-gpu-layers", "999"]
    found += ["--split-mode", "layer"] if len(uuids) > 1 else []
    # Its own fitting would spill to the CPU without failing; the plan has reckoned already.
    return found + (["--fit", "off"] if "--fit" in row["flags"] else [])


def _cache_path(request: Request, host: Host, row: Dict[str, Any], model: Plan,
                placed: Placement, uuids: List[str]) -> str:
    """Where what was compiled is kept; empty where nothing is compiled, or where the engine has a
    place of its own."""
    in_container = not releases.is_own(request) and row["runtime"] == "docker"
    whose = whose_cache("docker" if in_container else "native",
                        releases.image_of(request, row)[2])
    if row["engine"] == "vllm":
        return cache_of(host.state["root"], row["version"], placed.layout, model, whose)
    # The driver compiles PTX for cards that the image has no kernels for.
    return posixpath.join(host.state["root"], "cache", "llama_cpp-%s%s" % (
        row["version"], whose)) if in_container and uuids else ""


def whose_cache(runtime: str, user: str) -> str:
    """What of a cache's name keeps apart who writes into it: one runs what another left there."""
    if runtime != "docker":
        return ""
    return "-docker-" + (user.partition(":")[0] or "image")


def cache_of(root: str, version: str, layout: memory.Layout, model: Plan, whose: str) -> str:
    """Where what vLLM compiles for a model in a layout is kept."""
    return posixpath.join(root, "cache", "vllm-%s-tp%d-pp%d-%s%s" % (
        version, layout.tensor_parallel, layout.stages, model["fingerprint"][:12], whose))


def _packages(request: Request, host: Host, row: Dict[str, Any],
              told: List[str]) -> List[str]:
    """The distribution's packages that bring libraries which the engine needs and nothing has."""
    packages = []
    facts, state = host.facts, host.state
    family = [facts["system"]["distribution"]] + facts["system"]["like"]
    for library in row["libraries"] if not releases.is_own(request) else []:
        if library["soname"] not in state["missing_libraries"]:
            continue
        known = [library["packages"][name] for name in family if name in library["packages"]]
        if not known or state["uid"] != 0:
            raise Refused([reasons.refusal(
                request, "library-missing", "engine",
                "the loader does not find %s" % library["soname"],
                "%s %s needs it" % (row["package"], row["version"]),
                "install the distribution's package %s as root"
                % (known[0] if known else "that has it"), needs_root=True)])
        packages.append(known[0])
        told.append("The package %s brings %s, which the engine needs."
                    % (known[0], library["soname"]))
    return packages


def _start(request: Request, host: Host, model: Plan, option: Option) -> Dict[str, Any]:
    engine, placed = option.engine, option.placed
    rate = (host.facts.get("disk") or {}).get("read_bytes_per_second")
    cache = "" if engine.eager else posixpath.basename(_cache_path(
        request, host, engine.row, model, placed, option.uuids))
    found = start_budget(
        model["bytes"], model["geometry"]["layers"], placed.layout.devices, engine.costs,
        rate if type(rate) is int and rate > 0 else None,
        bool(cache) and cache in (host.state.get("caches") or []), engine.eager)
    found["limit_s"] = max(found["limit_s"],
                           healing.value_of(option.adjustments, "start_budget", 0))
    last = keep.last_start(request, host.state, _identity(
        request, model, engine, placed.layout, placed.settings))
    return {**found, "expected_s": found["expected_s"] if last is None else last,
            "seen": last is not None}
