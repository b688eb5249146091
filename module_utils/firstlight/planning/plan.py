# SPDX-License-Identifier: Apache-2.0
"""What runs where and how: one plan, or the reasons against one, for each endpoint asked for."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from .. import canary
from ..canary import tokenizer, weights
from ..findings import Finding, finding
from . import devices, keep, known_issues, kv, memory, parallelism, placement, releases
from .command import engine_command
from .health import key_of, size
from .keep import Pins
from .placement import Device, Engine, Placement
from .requests import Request
from .start_budget import start_budget

Plan = Dict[str, Any]

PARALLEL_REQUESTS = 4
# What memory cannot be reckoned without, by engine.
NEEDED = {
    "llama_cpp": ("layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim",
                  "vocabulary", "attention_layers", "state_bytes_per_sequence"),
    "vllm": ("layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim", "vocabulary",
             "attention_layers", "state_bytes_per_sequence"),
}
NEEDED_OF_EXPERTS = ("experts_per_token", "moe_intermediate")
# Flags that the plan itself gives; what they say is asked for by the keys of the endpoint.
DECIDED = {
    "--model": "model", "-m": "model", "--served-model-name": "model", "--alias": "model",
    "-a": "model", "--host": "bind", "--port": "port", "--max-model-len": "context",
    "--ctx-size": "context", "-c": "context", "--tensor-parallel-size": "tensor_parallel",
    "-tp": "tensor_parallel", "--pipeline-parallel-size": "tensor_parallel",
    "-pp": "tensor_parallel", "--gpu-memory-utilization": "gpus", "--device": "gpus",
    "-dev": "gpus", "--n-gpu-layers": "gpus", "-ngl": "gpus", "--api-key": "api_key",
    "--api-key-file": "api_key",
}
# Flags of the user that memory depends on.
OF_MEMORY = {
    "--kv-cache-dtype": ("key_type", "value_type"), "--cache-type-k": ("key_type",),
    "-ctk": ("key_type",), "--cache-type-v": ("value_type",), "-ctv": ("value_type",),
    "--max-num-batched-tokens": ("batched_tokens",), "--max-num-seqs": ("sequences",),
    "--ubatch-size": ("batched_tokens",), "-ub": ("batched_tokens",),
    "--flash-attn": ("flash_attention",), "-fa": ("flash_attention",),
}


ON_CPU = releases.Target("cpu", "the CPU", "", False)


class Refused(Exception):
    """No plan for this request; carries the findings that say why."""

    def __init__(self, findings: List[Finding]) -> None:
        super().__init__("; ".join(one["found"] for one in findings))
        self.findings = findings


class Host(NamedTuple):
    """What is known of the host, and what the other endpoints of it take."""

    facts: Dict[str, Any]
    models: Dict[str, Any]
    state: Dict[str, Any]
    catalog: Dict[str, Any]
    health: Dict[str, Any]
    taken: Dict[str, str]
    """Devices of other endpoints, by UUID."""
    taken_bytes: int
    """RAM of other endpoints."""


def deployment_plan(
    requests: List[Request],
    facts: Dict[str, Any],
    models: Dict[str, Any],
    state: Dict[str, Any],
    catalog: Dict[str, Any],
    health: Dict[str, Any],
) -> Dict[str, Any]:
    """Plans for one host.

    :param requests: as :func:`.requests.normalise` gives them.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param models: by path or repository, as ``model_info`` describes them. The canary needs no
        reading.
    :param state: what ``endpoint_info`` returned.
    :param catalog: the rows of the catalogs by name, and ``environments: {lock name: digest}``.
    :param health: what :func:`.health.host_health` returned.
    :returns: ``{endpoints: plans, refusals: findings}``. The same input gives the same output, and
        a plan that an endpoint runs by stays while it fits and nothing else is asked for.
    """
    made: Dict[int, Plan] = {}
    host = Host(facts, models, state, catalog, health, {}, 0)
    for index, request in enumerate(requests):
        kept = _kept(request, host)
        if kept:
            made[index] = kept
            host = _with(host, kept)
    # What another endpoint has, even when it does not run now, is not given away.
    reserved = keep.reserved(requests, state)
    refusals: List[Finding] = []
    for index, request in enumerate(requests):
        if index in made:
            continue
        others = {uuid: name for uuid, name in reserved.items() if name != request["name"]}
        try:
            made[index] = _one(request, host._replace(taken={**others, **host.taken}), None)
        except Refused as refused:
            refusals.extend(refused.findings)
            continue
        host = _with(host, made[index])
    return {"endpoints": [made[index] for index in sorted(made)], "refusals": refusals}


def _with(host: Host, plan: Plan) -> Host:
    """The host as it is for the endpoints after this one."""
    in_ram = 0 if plan["gpus"] else plan["memory"]["total_bytes"]
    taken = dict(host.taken)
    for uuid in plan["gpus"]:
        taken[uuid] = plan["name"]
    return host._replace(taken=taken, taken_bytes=host.taken_bytes + in_ram)


def _kept(request: Request, host: Host) -> Optional[Plan]:
    """The plan that the endpoint has, where the same choices still make the same plan."""
    pins = keep.pins(request, host.state)
    if pins is None:
        return None
    try:
        plan = _one(request, host, pins)
    except Refused:
        return None
    return plan if plan["hash"] == pins.hash else None


def _one(request: Request, host: Host, pins: Optional[Pins]) -> Plan:
    reasons: List[str] = []
    model = _model(request, host, reasons)
    _is_whole(request, model)
    pool, target = _target(request, host, pins)
    choice = _release(request, host, model, target)
    row = choice.row
    reasons += choice.reasons
    reasons += pool.reasons
    _check_args(request, row)
    packages = _packages(request, host, row, reasons)
    costs = memory.costs_of(row["engine"], host.catalog["engine_costs"])
    issues = _issues(host, row, model, target, None)
    flags = [flag for issue in issues for flag in issue["action"].get("add_flags", [])]
    engine = Engine(row, choice.kernel, costs, _memory_flags(request),
                    row["engine"] != "vllm" or "--enforce-eager" in flags + request["extra_args"],
                    {}, target.name)
    engine = engine._replace(seen=_seen(request, host, model, engine, pool))
    placed, context = _place(request, host, model, pool, engine, pins, reasons)
    uuids = _chosen(request, host, pool, placed, context, pins, reasons)
    issues = _issues(host, row, model, target, placed.layout.tensor_parallel)
    start = _start(host, model, engine, placed, request)
    if pins:
        start["limit_s"] = pins.start_limit_s
    plan = _assemble(request, host, model, choice, placed, context, uuids, flags)
    plan["env"] = {**choice.env, **_issue_env(issues, row, start["limit_s"])}
    plan["command"] = engine_command(plan)
    plan["hash"] = plan_hash(plan)
    plan["oracle"] = canary.oracle() if model["kind"] == "canary" else None
    plan["packages"] = packages
    plan["memory"] = placement.memory_of(placed, context, pool.device)
    plan["start"] = start
    plan["start_timeout_s"] = start["limit_s"]
    plan["asked"] = {key: request[key] for key in keep.ASKED}
    reasons.append(_start_reason(start))
    plan["reasons"] = reasons + [
        known_issues.said(issue) for issue in issues
        if issue["action"].get("add_flags") or plan["env"].keys() & issue["action"].get(
            "set_env", {}).keys()]
    plan["known_issues"] = [issue["id"] for issue in issues]
    return plan


def plan_hash(plan: Plan) -> str:
    """The identity of a plan: a hash of its decisions. Facts and reasons are not part of it."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _assemble(request: Request, host: Host, model: Plan, choice: releases.Choice,
              placed: Placement, context: int, uuids: List[str], flags: List[str]) -> Plan:
    """The decisions, which are what the hash covers."""
    row, root = choice.row, host.state["root"]
    own = bool(request["engine_python"] or request["engine_binary"])
    runtime = "native" if own else row["runtime"]
    locked = bool(row["lock"]) and not own
    environment = "%s-%s-%s" % (row["package"], row["version"], host.catalog["environments"][
        row["lock"]][:8]) if locked else ""
    image = "" if runtime == "native" else "%s:%s%s" % (
        row["image"], row["tag"], "@" + row["digest"] if row["digest"] else "")
    if row["engine"] == "llama_cpp" and uuids:
        flags = flags + ["--n-gpu-layers", "999"]
        flags += ["--split-mode", "layer"] if len(uuids) > 1 else []
        # Its own fitting would spill to the CPU without failing; the plan has reckoned already.
        flags += ["--fit", "off"] if "--fit" in row["flags"] else []
    return {
        "name": request["name"],
        "engine": row["engine"],
        "engine_version": row["version"],
        "runtime": runtime,
        "image": image,
        "entrypoint": [] if runtime == "native" else row["entrypoint"],
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
        "url": "http://%s:%d" % (request["bind"], request["port"]),
        "context": context,
        "parallel": PARALLEL_REQUESTS,
        "tensor_parallel": placed.layout.tensor_parallel,
        "pipeline_parallel": placed.layout.stages,
        "gpus": uuids,
        "utilisation": placed.utilisation,
        "batched_tokens": placed.settings.batched_tokens,
        "sequences": placed.settings.sequences,
        "cache": _cache_path(host, row, model, placed),
        "flags": flags,
        "extra_args": request["extra_args"],
    }


def _cache_path(host: Host, row: Dict[str, Any], model: Plan, placed: Placement) -> str:
    """Where what was compiled for this model is kept; empty where nothing is compiled."""
    if row["engine"] != "vllm":
        return ""
    return posixpath.join(host.state["root"], "cache", "vllm-%s-tp%d-%s" % (
        row["version"], placed.layout.tensor_parallel, model["fingerprint"][:12]))


# The model.


def _model(request: Request, host: Host, reasons: List[str]) -> Plan:
    """What is served, from where, under which name."""
    if request["model_kind"] == "canary":
        reasons.append("The canary is served: its answers are known, so they prove the rest.")
        found = _canary()
        path = posixpath.join(host.state["root"], "models", "canary", canary.GGUF)
        served = "canary"
    else:
        path = request["model"]
        if path not in host.models:
            raise Refused([_refusal(request, "model-unknown", "model", "nothing is known of %s"
                                    % path, "a model that was read, or one that a profile "
                                    "describes")])
        found = host.models[path]
        served = path if request["model_kind"] == "repo" else posixpath.basename(path.rstrip("/"))
        if served.endswith(".gguf"):
            served = served[: -len(".gguf")]
    return {
        "kind": request["model_kind"],
        "path": path,
        "served_name": served,
        "format": found["format"],
        "quantisation": found["quantisation"],
        "quantisation_bits": found.get("quantisation_bits"),
        "quantisation_group": found.get("quantisation_group"),
        "bytes": found["bytes"],
        "fingerprint": found["fingerprint"],
        "chat_template": found["chat_template"],
        "tensors": found.get("tensors"),
        "geometry": found["geometry"],
    }


def _canary() -> Dict[str, Any]:
    """The canary as ``model_info`` would describe it, known before it is built."""
    file = canary.FILES[canary.GGUF]
    table = tokenizer.VOCABULARY * weights.HIDDEN * 2
    return {
        "format": "gguf",
        "quantisation": "F16",
        "bytes": file.size,
        "fingerprint": file.sha256,
        "chat_template": True,
        "quantisation_bits": None,
        "quantisation_group": None,
        "tensors": {"embedding_bytes": table, "head_bytes": table, "other_bytes": 9447424},
        "geometry": {
            "architecture": "llama",
            "layers": weights.LAYERS,
            "hidden": weights.HIDDEN,
            "heads": weights.HEADS,
            "kv_heads": weights.KV_HEADS,
            "head_dim": weights.HEAD_DIM,
            "value_head_dim": weights.HEAD_DIM,
            "context": weights.CONTEXT,
            "vocabulary": tokenizer.VOCABULARY,
            "intermediate": weights.INTERMEDIATE,
            "tied_embeddings": False,
            "vision": False,
            "kv_lora_rank": None,
            "rope_head_dim": None,
            "query_lora_rank": None,
            "sliding_window": None,
            "sliding_layers": 0,
            "attention_layers": weights.LAYERS,
            "state_bytes_per_sequence": 0,
            "experts": None,
            "experts_per_token": None,
            "moe_intermediate": None,
            "shared_intermediate": None,
            "dense_layers": weights.LAYERS,
        },
    }


def _is_whole(request: Request, model: Plan) -> None:
    """Memory cannot be reckoned of a model that does not say its shape: every gap is named."""
    shape = model["geometry"]
    needed = list(NEEDED["llama_cpp" if model["format"] == "gguf" else "vllm"])
    if shape.get("experts"):
        needed += NEEDED_OF_EXPERTS
    elif model["format"] != "gguf":
        needed.append("intermediate")
    missing = [key for key in needed if shape.get(key) is None]
    findings = []
    if missing:
        findings.append(_refusal(
            request, "geometry-unknown", "model", "%s does not say its %s" % (
                model["path"], ", ".join(missing)),
            "a model whose header or config.json is complete"))
    if not model["bytes"] or model["bytes"] < 0:
        findings.append(_refusal(
            request, "no-weights", "model", "bytes: %s of weights in %s" % (
                model["bytes"], model["path"]), "the size of its weights, in bytes"))
    if findings:
        raise Refused(findings)


# The devices.


class Pool(NamedTuple):
    """The devices to choose from: all of one kind."""

    device: Device
    facts: Dict[str, Any]
    """The host's, with these devices alone."""
    reasons: List[str]


def _target(request: Request, host: Host, pins: Optional[Pins]) -> Tuple[Pool, releases.Target]:
    """The kind of device, and how many of it could be had."""
    facts, asked = host.facts, request["gpus"]
    if facts["class"] == "cpu" or asked == 0:
        return _cpu(request, host)
    wanted = _wanted(request, host, "all", 0, pins)
    found = devices.select_devices(facts, wanted, host.health, keep.held(request, host.state))
    if not found["devices"] and not wanted["uuids"] and asked in ("auto", "all", 1):
        # A slice of a split GPU works alone, so it is found only where one is enough.
        alone = devices.select_devices(facts, {**wanted, "count": 1}, host.health,
                                       keep.held(request, host.state))
        found = alone if alone["devices"] else found
    if not found["devices"]:
        raise Refused(found["refusals"])
    pieces = _pieces(facts)
    first, piece = pieces[found["devices"][0]]
    of = piece or first
    if of["memory_total_bytes"] is None:
        raise Refused([_refusal(request, "memory-unknown", "gpus", "the memory of %s is not known"
                                % (of["name"] or "the device"), "what NVML tells of it")])
    shared = first["unified_memory"] and not piece
    total = (host.facts["memory"]["total_bytes"] or 0) if shared else of["memory_total_bytes"]
    reserved = 0 if piece or shared else _driver_bytes(first, host.catalog)
    name = of["name"] or "a GPU without a name"
    row = _gpu_row(first, host.catalog)
    device = Device(name, total - reserved, first["capability"] or "", bool(shared),
                    len(found["devices"]), piece is not None)
    same = [one for one in facts["devices"] if _pieces({"devices": [one]}).keys() & set(
        found["devices"])]
    left = [reason for reason in found["reasons"] if "left out" in reason]
    target = releases.Target("gpu", name, device.capability, bool(row and row["datacenter"]))
    return Pool(device, {**facts, "devices": same}, left), target


def _wanted(request: Request, host: Host, count: Any, memory_bytes: int,
            pins: Optional[Pins]) -> Dict[str, Any]:
    uuids = request["gpus"] if isinstance(request["gpus"], list) else []
    return {
        "where": request["where"], "name": request["name"], "count": count,
        "uuids": pins.gpus if pins else uuids,
        "keep": _kept_devices(request, host), "tensor_parallel": count != 1,
        "memory_bytes": memory_bytes, "taken": host.taken,
        # Who runs on them has them, whatever came beside.
        "share": bool(pins and pins.running),
    }


def _kept_devices(request: Request, host: Host) -> List[str]:
    reserved = keep.reserved([request], host.state)
    return sorted(reserved)


def _pieces(facts: Dict[str, Any]) -> Dict[str, Tuple[Dict[str, Any], Optional[Dict[str, Any]]]]:
    """Every device and every slice by its UUID."""
    found: Dict[str, Tuple[Dict[str, Any], Optional[Dict[str, Any]]]] = {}
    for device in facts["devices"]:
        found[key_of(device)] = (device, None)
        for piece in (device["mig"] or {}).get("slices") or []:
            if piece["uuid"]:
                found[piece["uuid"]] = (device, piece)
    return found


def _gpu_row(device: Dict[str, Any], catalog: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    return next((row for row in catalog["gpus"] if row["nvml_name"] == device["name"]), None)


def _driver_bytes(device: Dict[str, Any], catalog: Dict[str, Any]) -> int:
    """What of NVML's total is the driver's own, and no CUDA program's."""
    if device["memory_reserved_bytes"] is not None:
        return int(device["memory_reserved_bytes"])
    row = _gpu_row(device, catalog)
    if row and row["reserved_mib"]:
        return int(row["reserved_mib"]) * 2**20
    # Seen: 0.4 to 0.6 % on H100 and H200; twice that where nobody tells.
    return int(device["memory_total_bytes"] * 0.012)


def _cpu(request: Request, host: Host) -> Tuple[Pool, releases.Target]:
    facts = host.facts
    if request["gpus"] not in ("auto", "all", 0):
        raise Refused([_refusal(request, "no-gpu", "gpus", "%s, and the host has no GPU"
                                % request["gpus"], "auto or 0")])
    if request["tensor_parallel"] not in ("auto", 1):
        raise Refused([_refusal(
            request, "no-tensor-parallel", "tensor_parallel", str(request["tensor_parallel"]),
            "auto or 1: a model on the CPU is not split over devices")])
    total = facts["memory"]["total_bytes"]
    if not total:
        raise Refused([_refusal(request, "memory-unknown", "context",
                                "the host's memory is not known", "MemTotal in /proc/meminfo")])
    reason = "Served on the CPU: %s." % (
        "gpus is 0" if facts["class"] != "cpu" else "the host has no GPU")
    device = Device("the CPU", int(total * placement.SHARE_OF_RAM) - host.taken_bytes, "", True, 1,
                    True)
    return Pool(device, facts, [reason]), ON_CPU


def _chosen(request: Request, host: Host, pool: Pool, placed: Placement, context: int,
            pins: Optional[Pins], reasons: List[str]) -> List[str]:
    """The devices themselves, now that it is known how many and what each must have free."""
    if not pool.device.capability:
        return []
    needed = 0
    if not (pins and pins.running):
        needed = placement.memory_of(placed, context, pool.device)["total_bytes"]
        if pool.device.shared:
            # Free memory of a shared one moves with the page cache: the limit has been held to.
            needed = 0
    wanted = _wanted(request, host, placed.layout.devices, needed, pins)
    found = devices.select_devices(pool.facts, wanted, host.health,
                                   keep.held(request, host.state))
    if not found["devices"]:
        raise Refused(found["refusals"])
    reasons += [reason for reason in found["reasons"] if "left out" not in reason]
    return list(found["devices"])


# The release.


def _release(request: Request, host: Host, model: Plan,
             target: releases.Target) -> releases.Choice:
    try:
        return releases.choose(request, host.facts, host.state, model, target, host.catalog)
    except releases.NoRelease as none:
        against = none.against
    # Of releases that nobody asked for there is nothing to say, unless there are no others.
    against = [one for one in against if "is asked for" not in one[2]] or against
    grouped: Dict[Tuple[str, str], List[str]] = {}
    for row, _, why in against:
        grouped.setdefault((row["engine"], why), []).append(
            " ".join(part for part in (row["version"], row["variant"]) if part))
    keys = {key for _, key, _ in against}
    raise Refused([_refusal(
        request, "no-engine", keys.pop() if len(keys) == 1 else "engine",
        found="; ".join("%s %s %s" % (engine, ", ".join(versions), why)
                        for (engine, why), versions in grouped.items()) or "an empty catalog",
        wanted="a release of the catalog that serves %s (%s) on %s, %s" % (
            model["format"], model["quantisation"], target.name,
            host.facts["cpu"]["architecture"]),
        remedy=_what_would_work(request, host, model, target, against))])


def _what_would_work(request: Request, host: Host, model: Plan, target: releases.Target,
                     against: List[Tuple[Dict[str, Any], str, str]]) -> str:
    """The nearest change that would make a plan: the engine, the CPU, or a GGUF of the model."""
    where = request["where"]
    free = {**request, "engine": "auto", "runtime": "auto", "engine_version": "auto",
            "engine_python": None, "engine_binary": None}
    ways = []
    title = _title_of_choice(free, host, model, target)
    if title:
        ways.append("%s.engine: auto takes %s" % (where, title))
    if model["format"] == "safetensors":
        as_gguf = {**model, "format": "gguf"}
        gguf = _title_of_choice(free, host, as_gguf, target)
        row = _counterpart(request, host.catalog)
        named = ": %s in %s is one; the plan does not take it by itself" % (
            row["file"], row["counterpart"]) if row else ""
        if gguf:
            ways.append("%s.model: a GGUF of it, which %s serves here%s" % (where, gguf, named))
        elif _title_of_choice(free, host, as_gguf, ON_CPU):
            ways.append("%s.model: a GGUF of it%s, with %s.gpus: 0 on the CPU" % (
                where, named, where))
    elif target.kind == "gpu" and not title and _title_of_choice(free, host, model, ON_CPU):
        ways.append("%s.gpus: 0 serves on the CPU" % where)
    newer = host._replace(facts={**host.facts, "driver": {"version": "99999"}})
    if target.kind == "gpu" and not title:
        title = _title_of_choice(free, newer, model, target)
        if title:
            ways.append("a newer driver: then %s serves it" % title)
    return "; or ".join(ways)


def _title_of_choice(request: Request, host: Host, model: Plan, target: releases.Target) -> str:
    """The release that would be chosen, for a person; empty where there is none."""
    try:
        return releases.title(releases.choose(
            request, host.facts, host.state, model, target, host.catalog).row)
    except releases.NoRelease:
        return ""


def _counterpart(request: Request, catalog: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """The catalog's GGUF of a repository; of a path by its last part."""
    name = posixpath.basename(request["model"].rstrip("/")).lower()
    for row in catalog["gguf_counterparts"]:
        repository = row["repository"].lower()
        if request["model"].lower() == repository or (
                request["model_kind"] == "path" and name == posixpath.basename(repository)):
            return dict(row)
    return None


def _packages(request: Request, host: Host, row: Dict[str, Any],
              reasons: List[str]) -> List[str]:
    """The distribution's packages that bring libraries which the engine needs and nothing has."""
    packages = []
    facts, state = host.facts, host.state
    family = [facts["system"]["distribution"]] + facts["system"]["like"]
    for library in row["libraries"]:
        if library["soname"] not in state["missing_libraries"]:
            continue
        known = [library["packages"][name] for name in family if name in library["packages"]]
        if not known or state["uid"] != 0:
            raise Refused([_refusal(
                request, "library-missing", "engine",
                "the loader does not find %s" % library["soname"],
                "%s %s needs it" % (row["package"], row["version"]),
                "install the distribution's package %s as root"
                % (known[0] if known else "that has it"), needs_root=True)])
        packages.append(known[0])
        reasons.append("The package %s brings %s, which the engine needs."
                       % (known[0], library["soname"]))
    return packages


def _check_args(request: Request, row: Dict[str, Any]) -> None:
    """Flags that the engine would refuse, or that the plan gives, are refused here, before
    anything is stopped. What follows a ``=`` is not shown: it may be a key."""
    flags = [flag for flag in (one.partition("=")[0] for one in request["extra_args"])
             if flag.startswith("-") and not _is_number(flag)]
    findings = []
    known = row["extra_flags"]
    unknown = [flag for flag in flags if known and flag not in known]
    if unknown:
        findings.append(_refusal(
            request, "unknown-flag", "extra_args", " ".join(unknown),
            "for %s %s: %s (what the plan decides is not listed)" % (
                row["package"], row["version"], " ".join(known))))
    decided = [flag for flag in flags if flag in DECIDED and flag not in unknown]
    if decided:
        findings.append(_refusal(
            request, "decided-flag", "extra_args", " ".join(decided),
            "flags that the plan does not give", "say it by %s" % ", ".join(sorted(
                {"%s.%s" % (request["where"], DECIDED[flag]) for flag in decided}))))
    removed = [flag for flag in flags if flag in row["removed_flags"]]
    if removed:
        findings.append(_refusal(
            request, "removed-flag", "extra_args", " ".join(removed),
            "flags that %s %s still has" % (row["engine"], row["version"])))
    bad = [flag for flag, value in _flag_values(request["extra_args"]) if not _is_sound(
        flag, value)]
    if bad:
        findings.append(_refusal(
            request, "bad-flag", "extra_args", " ".join(bad),
            "a whole number from 1, or for a type of the cache one of %s" % ", ".join(
                sorted(kv.ELEMENT_BITS))))
    if findings:
        raise Refused(findings)


def _is_sound(flag: str, value: str) -> bool:
    if OF_MEMORY[flag][0] == "flash_attention":
        return True
    if OF_MEMORY[flag][0] in ("key_type", "value_type"):
        return value in kv.ELEMENT_BITS
    return value.isdigit() and 1 <= int(value) <= 2**24


def _flag_values(args: List[str]) -> List[Tuple[str, str]]:
    """The user's flags that memory depends on, each with its value."""
    found = []
    for one, after in zip(args, [*args[1:], ""]):
        flag, sign, value = one.partition("=")
        if flag in OF_MEMORY:
            found.append((flag, value if sign else after))
    return found


def _memory_flags(request: Request) -> Dict[str, str]:
    return {key: value for flag, value in _flag_values(request["extra_args"])
            for key in OF_MEMORY[flag]}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# What is known to break.


def _issues(host: Host, row: Dict[str, Any], model: Plan, target: releases.Target,
            tensor_parallel: Optional[int]) -> List[Dict[str, Any]]:
    if target.kind == "cpu":
        return []
    case = releases.case_of(host.facts, row, model, target.capability, tensor_parallel)
    return known_issues.that_hold(case, host.catalog["known_issues"])


def _issue_env(issues: List[Dict[str, Any]], row: Dict[str, Any], limit_s: int) -> Dict[str, str]:
    """Variables that are needed; none that the release does not know."""
    values = {"start_budget_s": limit_s}
    wanted = {key: value % values for issue in issues
              for key, value in issue["action"].get("set_env", {}).items()}
    never = {key for issue in issues for key in issue["action"].get("unset_env", [])}
    return {key: value for key, value in wanted.items()
            if key in row["environment"] and key not in never}


# Placing.


def _seen(request: Request, host: Host, model: Plan, engine: Engine,
          pool: Pool) -> placement.Seen:
    """Observed memory, where the passport is of the same model, release, layout and flags."""
    found = {}
    for count in range(1, pool.device.available + 1):
        for layout in parallelism.layouts(engine.row["engine"], model, engine.kernel, count):
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
        "extra_args": request["extra_args"], "batched_tokens": settings.batched_tokens,
        "sequences": settings.sequences, "fingerprint": model["fingerprint"],
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


def _place(request: Request, host: Host, model: Plan, pool: Pool, engine: Engine,
           pins: Optional[Pins], reasons: List[str]) -> Tuple[Placement, int]:
    """The placement and the context in tokens."""
    device = pool.device
    counts = _counts(request, pool, pins)
    if min(counts) > device.available:
        raise Refused([_too_many(request, host, model, device, engine, min(counts))])
    trained = model["geometry"]["context"]
    automatic = placement.AUTO_CONTEXT_GPU if device.capability else placement.AUTO_CONTEXT_CPU
    most = trained or placement.AUTO_CONTEXT_GPU * 8
    asked = pins.context if pins else request["context"]
    wanted = min(most, automatic) if asked == "auto" else asked
    split = request["tensor_parallel"] if request["tensor_parallel"] != "auto" else None
    if pins:
        split = pins.tensor_parallel
    found = list(placement.placements(model, device, engine, counts, split, most))
    if pins:
        # What runs has shown that it fits: the margin for error is behind it.
        found = [one for one in found if (one.settings.batched_tokens, one.settings.sequences)
                 == (pins.batched_tokens, pins.sequences)]
        found = [one._replace(fits=max(one.fits, pins.context)) for one in found
                 if kv.sequence_bytes(one.cache, pins.context) <= one.room]
    if not found:
        raise Refused([_no_layout(request, model, engine, counts, device)])
    placed = placement.choose(found, wanted, request["gpus"] == "all")
    context = min(placed.fits, wanted) if asked == "auto" else asked
    if context < 1 or context > placed.fits:
        raise Refused([_does_not_fit(request, model, device, engine, placed, context, trained)])
    reasons.append(_layout_reason(placed, device, model, engine.kernel))
    reasons.append(_context_reason(asked, context, trained, placed, device))
    reasons += _advice(model, device, engine, placed, context, wanted, asked)
    reasons.append(_memory_reason(placed, engine, device))
    return placed, context


def _layout_reason(placed: Placement, device: Device, model: Plan,
                   kernel: Optional[Dict[str, Any]]) -> str:
    layout = placed.layout
    if layout.devices == 1:
        return "%s holds %s of weights and the cache." % (
            "One device" if device.capability else "RAM", size(placed.fixed.weights))
    if layout.stages == 1:
        return "Tensor parallel %d: every layer is split over %d devices, %s of weights each." % (
            layout.tensor_parallel, layout.devices, size(placed.fixed.weights))
    if layout.tensor_parallel == 1:
        return "The layers lie on %d devices, one part after the other, %s of weights each." % (
            layout.stages, size(placed.fixed.weights))
    return "Tensor parallel %d times pipeline parallel %d on %d devices: %s." % (
        layout.tensor_parallel, layout.stages, layout.devices,
        parallelism.objection(model, kernel, layout.devices) or "as asked")


def _context_reason(asked: Any, context: int, trained: Optional[int], placed: Placement,
                    device: Device) -> str:
    if asked != "auto":
        why = "as asked"
    elif context == trained:
        why = "all that the model was trained for"
    elif context == (placement.AUTO_CONTEXT_GPU if device.capability
                     else placement.AUTO_CONTEXT_CPU):
        why = "what auto gives on a %s; ask for more to get it" % (
            "GPU" if device.capability else "CPU")
    else:
        why = "the most that fits in memory with a margin of %s for error" % size(
            placed.error_bytes)
    return "%d tokens of context: %s." % (context, why)


def _advice(model: Plan, device: Device, engine: Engine, placed: Placement, context: int,
            wanted: int, asked: Any) -> List[str]:
    """What more devices of the kind would give, where the context had to be cut."""
    if asked != "auto" or context >= wanted or device.alone:
        return []
    for layout in parallelism.larger(engine.row["engine"], model, engine.kernel,
                                     placed.layout.devices):
        better = max((placement.place(model, device, engine, layout, settings, wanted)
                      for settings in placement.batches(model, device, engine)),
                     key=lambda one: one.fits)
        if better.fits >= wanted:
            return ["Short of the %d tokens that auto wants: %d such devices (%s) would give them, "
                    "and are recommended." % (wanted, layout.devices, _layout_words(layout))]
    return []


def _layout_words(layout: memory.Layout) -> str:
    return "tensor parallel %d" % layout.tensor_parallel if layout.stages == 1 else (
        "%d parts of layers" % layout.stages)


def _memory_reason(placed: Placement, engine: Engine, device: Device) -> str:
    settings = placed.settings
    source = "as observed in its last passport" if placed.observed else (
        "reckoned, within %s of each device" % size(placed.error_bytes))
    words = "Memory %s" % source
    if engine.vllm:
        words += ", for batches of %d tokens and %d sequences" % (
            settings.batched_tokens, settings.sequences)
    return words + "."


# Refusals.


def _refusal(request: Request, id: str, key: str, found: str, wanted: str,  # noqa: A002
             remedy: str = "", needs_root: bool = False) -> Finding:
    subject = "%s.%s" % (request["where"], key)
    return finding("plan-" + id, subject, found, wanted, remedy or "change " + subject,
                   needs_root=needs_root)


def _too_many(request: Request, host: Host, model: Plan, device: Device, engine: Engine,
              count: int) -> Finding:
    """More devices than the host has: several nodes, which are not built yet."""
    key = "gpus" if request["gpus"] != "auto" else "tensor_parallel"
    found = "%d devices, and this host has %d of %s that can be had" % (
        count, device.available, device.title)
    if not engine.vllm:
        return _refusal(request, "too-few-devices", key, found, "what this host has")
    nodes = -(-count // device.available)
    split = max((one for one in range(1, device.available + 1)
                 if device.available % one == 0
                 and not parallelism.objection(model, engine.kernel, one)), default=1)
    stages = max(1, nodes * device.available // split)
    command = ("vllm serve %s --tensor-parallel-size %d --pipeline-parallel-size %d" % (
        model["path"], split, stages))
    return _refusal(
        request, "several-nodes", key, found,
        "devices of one host: several hosts are not built yet",
        "take at most %d, or run it by hand on %d hosts: `%s --nnodes %d --node-rank R "
        "--master-addr ADDRESS` on each (`--headless` on all but the first), or in a Ray cluster "
        "`%s --distributed-executor-backend ray`" % (
            device.available, nodes, command, nodes, command))


def _no_layout(request: Request, model: Plan, engine: Engine, counts: List[int],
               device: Device) -> Finding:
    split = request["tensor_parallel"]
    tried = split if split != "auto" else max(counts)
    why = parallelism.objection(model, engine.kernel, tried) or (
        "%d is no part of %d devices" % (tried, max(counts)))
    good = [one for one in range(1, device.available + 1)
            if not parallelism.objection(model, engine.kernel, one)]
    return _refusal(request, "no-layout", "tensor_parallel" if split != "auto" else "gpus", why,
                    "one of %s" % ", ".join(map(str, good)))


def _does_not_fit(request: Request, model: Plan, device: Device, engine: Engine,
                  placed: Placement, context: int, trained: Optional[int]) -> Finding:
    fixed, most = placed.fixed, placed.fits
    too_long = bool(trained) and most == trained
    count = placed.layout.devices
    per_token = placed.cache.layer_bytes * (placed.cache.full_layers + placed.cache.window_layers)
    found = ("%s tokens; on each of %d x %s with %s for an engine: weights %s, the engine itself "
             "%s, each token up to %s, margin %s" % (
                 context or "no", count, device.title, size(device.limit_bytes),
                 size(fixed.weights), size(fixed.total - fixed.weights), _kib(per_token),
                 size(placed.error_bytes)))
    remedy = ""
    if not most:
        remedy = "serve a smaller model: this one leaves no room for a context"
        for layout in parallelism.larger(engine.row["engine"], model, engine.kernel, count):
            if not device.alone and placement.place(
                    model, device, engine, layout, placed.settings,
                    trained or placement.AUTO_CONTEXT_GPU).fits:
                remedy += ", or give it %d such devices (%s)" % (
                    layout.devices, _layout_words(layout))
                break
    return _refusal(
        request, "context-beyond-model" if too_long else "does-not-fit", "context", found,
        "at most %d tokens%s" % (most, ", as the model was trained" if too_long else ""), remedy)


def _kib(count: int) -> str:
    return "%.4g KiB" % (count / 1024)


# The start.


def _start(host: Host, model: Plan, engine: Engine, placed: Placement,
           request: Request) -> Dict[str, Any]:
    rate = (host.facts.get("disk") or {}).get("read_bytes_per_second")
    cache = posixpath.basename(_cache_path(host, engine.row, model, placed))
    found = start_budget(
        model["bytes"], model["geometry"]["layers"], placed.layout.devices, engine.costs,
        rate if type(rate) is int and rate > 0 else None,
        bool(cache) and cache in (host.state.get("caches") or []), engine.eager)
    last = keep.last_start(request, host.state, _identity(
        request, model, engine, placed.layout, placed.settings))
    return {**found, "expected_s": found["expected_s"] if last is None else last,
            "seen": last is not None}


def _start_reason(start: Dict[str, Any]) -> str:
    if start["seen"]:
        return "Start: about %d s, as the last one took; given up after %d s." % (
            start["expected_s"], start["limit_s"])
    return ("Start: about %d s (%d s to read the model at %s, %d s to compile%s), given up after "
            "%d s." % (start["expected_s"], start["read_s"],
                       "the measured rate" if start["measured_disk"] else "an assumed 100 MiB/s",
                       start["compile_s"], " from its cache" if start["cached"] else "",
                       start["limit_s"]))
