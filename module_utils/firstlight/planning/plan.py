# SPDX-License-Identifier: Apache-2.0
"""What runs where and how: one plan, or the reasons against one, for each endpoint asked for."""

from __future__ import annotations

import hashlib
import json
import posixpath
from typing import Any, Dict, List, Optional, Tuple

from .. import canary
from ..canary import tokenizer, weights
from ..findings import Finding, finding
from . import memory
from .command import engine_command
from .requests import Request

Plan = Dict[str, Any]

START_SECONDS_FLOOR = 60
# A slow disk, so that a model is not given up while it is being read.
READ_BYTES_PER_SECOND = 100 * 2**20
PARALLEL_REQUESTS = 4


class Refused(Exception):
    """No plan for this request; carries the finding that says why."""

    def __init__(self, request: Request, id: str, key: str, found: str, wanted: str,  # noqa: A002
                 remedy: str = "", needs_root: bool = False) -> None:
        subject = "%s.%s" % (request["where"], key)
        super().__init__(found)
        self.finding = finding("plan-" + id, subject, found, wanted, remedy or "change " + subject,
                               needs_root=needs_root)


def deployment_plan(
    requests: List[Request],
    facts: Dict[str, Any],
    models: Dict[str, Any],
    state: Dict[str, Any],
    catalog: Dict[str, Any],
) -> Dict[str, Any]:
    """Plans for one host.

    :param requests: as :func:`.requests.normalise` gives them.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param models: by path, as ``model_info`` describes them. The canary needs no reading.
    :param state: what ``endpoint_info`` returned.
    :param catalog: ``{engine_releases: rows, environments: {lock name: digest}}``.
    :returns: ``{endpoints: plans, refusals: findings}``. The same input gives the same output.
    """
    endpoints: List[Plan] = []
    refusals: List[Finding] = []
    taken_bytes = 0
    for request in requests:
        try:
            plan = _one(request, facts, models, state, catalog, taken_bytes)
        except Refused as refused:
            refusals.append(refused.finding)
            continue
        taken_bytes += plan["memory"]["total_bytes"]
        endpoints.append(plan)
    return {"endpoints": endpoints, "refusals": refusals}


def _one(request: Request, facts: Dict[str, Any], models: Dict[str, Any],
         state: Dict[str, Any], catalog: Dict[str, Any], taken_bytes: int) -> Plan:
    root = state["root"]
    reasons: List[str] = []
    model = _model(request, models, root, reasons)
    release = _release(request, facts, state, model, catalog["engine_releases"], reasons)
    _devices(request, facts, release, reasons)
    _extra_args(request, release)
    packages = _packages(request, facts, state, release, reasons)
    context, needed = _context(request, facts, model, taken_bytes, reasons)
    environment = "%s-%s-%s" % (release["package"], release["version"],
                                catalog["environments"][release["lock"]][:8])
    venv = posixpath.join(root, "venvs", environment)
    plan: Plan = {
        "name": request["name"],
        "engine": release["engine"],
        "engine_version": release["version"],
        "runtime": release["runtime"],
        "package": release["package"],
        "environment": environment,
        "venv": venv,
        "lock": release["lock"],
        "launcher": release["launcher"],
        "dialect": release["dialect"],
        "model": model,
        "bind": request["bind"],
        "port": request["port"],
        "url": "http://%s:%d" % (request["bind"], request["port"]),
        "context": context,
        "parallel": PARALLEL_REQUESTS,
        "tensor_parallel": 1,
        "gpus": [],
        "extra_args": request["extra_args"],
    }
    plan["command"] = engine_command(plan)
    plan["hash"] = plan_hash(plan)
    plan["oracle"] = canary.oracle() if model["kind"] == "canary" else None
    plan["packages"] = packages
    plan["memory"] = needed
    plan["start_timeout_s"] = START_SECONDS_FLOOR + model["bytes"] // READ_BYTES_PER_SECOND
    plan["reasons"] = reasons
    return plan


def plan_hash(plan: Plan) -> str:
    """The identity of a plan: a hash of its decisions. Facts and reasons are not part of it."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def _model(request: Request, models: Dict[str, Any], root: str, reasons: List[str]) -> Plan:
    """What is served, from where, under which name."""
    if request["model_kind"] == "canary":
        reasons.append("The canary is served: its answers are known, so they prove the rest.")
        found = _canary()
        path = posixpath.join(root, "models", "canary", canary.GGUF)
        served = "canary"
    else:
        path = request["model"]
        found = models[path]
        served = posixpath.basename(path.rstrip("/"))
        if served.endswith(".gguf"):
            served = served[: -len(".gguf")]
    return {
        "kind": request["model_kind"],
        "path": path,
        "served_name": served,
        "format": found["format"],
        "quantisation": found["quantisation"],
        "bytes": found["bytes"],
        "fingerprint": found["fingerprint"],
        "chat_template": found["chat_template"],
        "geometry": found["geometry"],
    }


def _canary() -> Dict[str, Any]:
    """The canary as ``model_info`` would describe it, known before it is built."""
    file = canary.FILES[canary.GGUF]
    return {
        "format": "gguf",
        "quantisation": "F16",
        "bytes": file.size,
        "fingerprint": file.sha256,
        "chat_template": True,
        "geometry": {
            "architecture": "llama",
            "layers": weights.LAYERS,
            "hidden": weights.HIDDEN,
            "heads": weights.HEADS,
            "kv_heads": weights.KV_HEADS,
            "head_dim": weights.HEAD_DIM,
            "context": weights.CONTEXT,
            "vocabulary": tokenizer.VOCABULARY,
        },
    }


def _release(request: Request, facts: Dict[str, Any], state: Dict[str, Any], model: Plan,
             rows: List[Dict[str, Any]], reasons: List[str]) -> Dict[str, Any]:
    """The newest release in the catalog that can do it on this host."""
    architecture = facts["cpu"]["architecture"]
    against: List[Tuple[str, str, str]] = []
    for row in rows[::-1]:
        label = "%s %s (%s)" % (row["engine"], row["version"], row["runtime"])
        objection = (
            _not_asked_for(request, row, "engine")
            or _not_asked_for(request, row, "runtime")
            or _unfit("model", model["format"], row["formats"], "reads")
            # This planner places on the CPU alone; a release without a CPU build is none for it.
            or _unfit("engine", "cpu", row["devices"], "runs on")
            or _unfit("engine", architecture, row["architectures"], "runs on")
            or _python_too_old(state, row)
        )
        if objection is None:
            reasons.append("%s: the newest release in the catalog that serves %s on %s."
                           % (label, model["format"], architecture))
            return row
        against.append((label, objection[0], objection[1]))
    key = against[0][1] if len({one[1] for one in against}) == 1 and against else "engine"
    raise Refused(
        request, "no-engine", key,
        found="; ".join("%s: %s" % (label, why) for label, _, why in against) or "an empty catalog",
        wanted="; ".join(
            "%s %s (%s) serves %s on %s with Python %s or newer"
            % (row["engine"], row["version"], row["runtime"], " and ".join(row["formats"]),
               " and ".join(row["architectures"]), row["minimum_python"])
            for row in reversed(rows)) or "a release in the catalog",
    )


def _not_asked_for(request: Request, row: Dict[str, Any], key: str) -> Optional[Tuple[str, str]]:
    if request[key] in ("auto", row[key]):
        return None
    return key, "%s is asked for" % request[key]


def _unfit(key: str, value: str, known: List[str], verb: str) -> Optional[Tuple[str, str]]:
    if value in known:
        return None
    return key, "%s %s, not %s" % (verb, " and ".join(known), value)


def _python_too_old(state: Dict[str, Any], row: Dict[str, Any]) -> Optional[Tuple[str, str]]:
    there = state["python"]["version"]
    if _version(there) >= _version(row["minimum_python"]):
        return None
    return "engine", (
        "needs Python %s, and %s runs the modules (ansible_python_interpreter names another)"
        % (row["minimum_python"], there))


def _version(text: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _devices(request: Request, facts: Dict[str, Any], release: Dict[str, Any],
             reasons: List[str]) -> None:
    """A CPU build on a host with GPUs is refused unless it is asked for."""
    asked = request["gpus"]
    if asked not in ("auto", 0):
        raise Refused(request, "no-gpu-build", "gpus", found=repr(asked),
                      wanted="auto or 0: %s %s runs on the CPU only"
                      % (release["package"], release["version"]))
    if request["tensor_parallel"] not in ("auto", 1):
        raise Refused(request, "no-tensor-parallel", "tensor_parallel",
                      found=str(request["tensor_parallel"]),
                      wanted="auto or 1: a CPU engine is not split over devices")
    if facts["class"] != "cpu" and asked == "auto":
        names = ", ".join(one["name"] or "unnamed" for one in facts["devices"]) or facts["class"]
        raise Refused(request, "cpu-build-on-gpu-host", "gpus",
                      found="%s on this host, and %s %s is a CPU build"
                      % (names, release["package"], release["version"]),
                      wanted="a word that the CPU is meant",
                      remedy="%s.gpus: 0 serves on the CPU" % request["where"])
    reasons.append("Served on the CPU: %s." % (
        "gpus is 0" if facts["class"] != "cpu" else "the host has no GPU"))


def _packages(request: Request, facts: Dict[str, Any], state: Dict[str, Any],
              release: Dict[str, Any], reasons: List[str]) -> List[str]:
    """The distribution's packages that bring libraries which the engine needs and nothing has."""
    packages = []
    family = [facts["system"]["distribution"]] + facts["system"]["like"]
    for row in release["libraries"]:
        if row["soname"] not in state["missing_libraries"]:
            continue
        known = [row["packages"][name] for name in family if name in row["packages"]]
        if not known or state["uid"] != 0:
            raise Refused(request, "library-missing", "engine",
                          found="the loader does not find %s" % row["soname"],
                          wanted="%s %s needs it" % (release["package"], release["version"]),
                          remedy="install the distribution's package %s as root"
                          % (known[0] if known else "that has it"), needs_root=True)
        packages.append(known[0])
        reasons.append("The package %s brings %s, which the engine needs."
                       % (known[0], row["soname"]))
    return packages


def _extra_args(request: Request, release: Dict[str, Any]) -> None:
    """Flags that the launcher would refuse are refused here, before anything is stopped.

    What follows a ``=`` is not shown: it may be a key.
    """
    known = release["extra_flags"]
    unknown = [
        flag for flag in (one.partition("=")[0] for one in request["extra_args"])
        if flag.startswith("-") and not _is_number(flag) and flag not in known
    ]
    if unknown:
        raise Refused(request, "unknown-flag", "extra_args", found=" ".join(unknown),
                      wanted="for %s %s: %s (what the plan decides is not listed)"
                      % (release["package"], release["version"], " ".join(known)))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _context(request: Request, facts: Dict[str, Any], model: Plan, taken_bytes: int,
             reasons: List[str]) -> Tuple[int, Dict[str, Any]]:
    """The context in tokens, and the memory that it and the weights need."""
    total = facts["memory"]["total_bytes"]
    if not total:
        raise Refused(request, "memory-unknown", "context", found="the host's memory is not known",
                      wanted="MemTotal in /proc/meminfo")
    per_token = memory.kv_bytes_per_token(model["geometry"])
    trained = model["geometry"]["context"]
    if per_token is None:
        raise Refused(request, "geometry-unknown", "model",
                      found="%s does not say its layers, heads and head size" % model["path"],
                      wanted="a model whose header is complete")
    limit = memory.budget_bytes(total) - taken_bytes
    fixed = model["bytes"] + memory.OVERHEAD_BYTES
    fits = memory.largest_context(limit - fixed, per_token, trained)
    asked = request["context"]
    context = min(fits, memory.AUTO_CONTEXT_LIMIT) if asked == "auto" else asked
    if context < 1 or context > fits:
        too_long = trained and fits == trained
        raise Refused(
            request, "context-beyond-model" if too_long else "does-not-fit", "context",
            found="%s tokens; weights take %s, the engine %s, each token %s, this host has %s "
            "for it" % (context or "no", _size(model["bytes"]), _size(memory.OVERHEAD_BYTES),
                        _size(per_token), _size(limit)),
            wanted="at most %d tokens%s"
            % (fits, ", as the model was trained" if too_long else ""),
            remedy="" if fits else "serve a smaller model: this one leaves no room for a context")
    reasons.append("%d tokens of context: %s." % (context, _why(asked, context, trained)))
    kv = context * per_token
    return context, {
        "weights_bytes": model["bytes"],
        "kv_bytes": kv,
        "overhead_bytes": memory.OVERHEAD_BYTES,
        "total_bytes": fixed + kv,
        "limit_bytes": limit,
    }


def _why(asked: Any, context: int, trained: Optional[int]) -> str:
    if asked != "auto":
        return "as asked"
    if context == trained:
        return "all that the model was trained for"
    if context == memory.AUTO_CONTEXT_LIMIT:
        return "what auto gives on a CPU; ask for more to get it"
    return "the most that fits in memory"


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return "%.4g %s" % (value, unit)
