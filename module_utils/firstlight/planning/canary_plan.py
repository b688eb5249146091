# SPDX-License-Identifier: Apache-2.0
"""The canary before an endpoint: proof that an engine works on these devices, before anything large
is fetched or anything that serves is stopped."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Dict, List

from .. import canary
from ..canary import weights
from . import keep, parallelism, way_in
from .command import engine_command
from .memory import Layout
from .plan import GIB, cache_of, plan_hash, whose_cache
from .served import the_canary
from .start_budget import FLOOR_SECONDS, PATIENCE

Plan = Dict[str, Any]

# What vLLM takes of a device at most: the canary, a batch of the plan's size, graphs, and a cache.
SHARE_BYTES = 4 * GIB
# Its start may compile kernels of the card, which the plan of another model says nothing of.
LEAST_SECONDS = 300


def canary_key(plan: Plan, facts: Dict[str, Any]) -> str:
    """What a proof with the canary is of, as a hash: it holds again where this is the same.

    :param plan: a plan of :func:`.plan.deployment_plan`.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    """
    of = {key: plan[key] for key in ("engine", "engine_version", "runtime", "image", "user",
                                     "engine_python", "engine_binary", "environment",
                                     "tensor_parallel", "pipeline_parallel")}
    if plan.get("wheels"):
        of["wheels"] = plan["wheels"]
    of["driver"] = (facts["driver"] or {}).get("version") if plan["gpus"] else None
    of["gpus"] = sorted(plan["gpus"])
    of["canary"] = _model(plan, "/")["fingerprint"]
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def canaries_needed(plans: List[Plan], facts: Dict[str, Any],
                    state: Dict[str, Any]) -> List[str]:
    """The endpoints before which the canary has to be served and proven.

    :param plans: ``endpoints`` of :func:`.plan.deployment_plan`.
    :param facts: ``gpu_host`` of ``gpu_facts``.
    :param state: what ``endpoint_info`` returned, with the keys of what was proven as ``canaries``.
    :returns: names, one for each thing to prove. What runs by its plan has proven it, and an engine
        of ours on the CPU is proven by its endpoint within seconds.
    """
    proven = set(state.get("canaries") or [])
    needed = []
    for plan in plans:
        if not _runs(plan, state) and plan["model"]["kind"] != "canary" and (
                plan["gpus"] or plan["runtime"] == "docker"):
            key = canary_key(plan, facts)
            if key not in proven:
                needed.append(plan["name"])
                proven.add(key)
    return needed


def _runs(plan: Plan, state: Dict[str, Any]) -> bool:
    request = {"name": plan["name"]}
    there = (state.get("endpoints") or {}).get(plan["name"])
    return isinstance(there, dict) and there.get("state") == "running" and (
        there.get("plan") == plan["hash"] == keep.last_plan(request, state).get("hash"))


def canary_plan(plan: Plan, root: str) -> Plan:
    """The plan that serves the canary as ``plan`` would serve its model.

    The engine, its devices, tensor parallel, and the flags that the host or the release need are
    the same; the user's own flags are left out, as they may be about the model. It listens on
    loopback alone, on an inner port, so that nobody who asks the endpoint is answered by it.

    :param plan: a plan of :func:`.plan.deployment_plan`.
    :param root: ``firstlight_root``.
    """
    model = _model(plan, root)
    told = ["The canary first: %s %s was not proven on %s of this host yet." % (
        plan["engine"], plan["engine_version"],
        "these devices" if plan["gpus"] else "the CPU")]
    layout = _layout(plan, model, told)
    port = plan["engine_port"] if plan["way_in"] else way_in.inner_ports(plan["port"], None)[0]
    url = "http://127.0.0.1:%d" % port
    made: Plan = {
        **plan, "model": model, "context": weights.CONTEXT, "extra_args": [],
        # It brings no code.
        "flags": [one for one in plan["flags"] if one != "--trust-remote-code"],
        "tensor_parallel": layout.tensor_parallel, "pipeline_parallel": layout.stages,
        "gpus": plan["gpus"][:layout.devices] if plan["engine"] == "vllm" else plan["gpus"],
        "bind": "127.0.0.1", "port": port, "engine_port": port, "url": url, "public_url": url,
        "way_in": False, "tls": "none", "tls_certificate": "", "tls_key": "", "beside": False,
        "env": dict(plan["env"]), "oracle": canary.oracle(), "known_issues": list(
            plan["known_issues"]), "trial": {"of": plan["hash"]}, "reasons": told,
    }
    if plan["cache"] and plan["engine"] == "vllm":
        made["cache"] = cache_of(root, plan["engine_version"], layout, model,
                                 whose_cache(plan["runtime"], plan["user"]))
        if "VLLM_CACHE_ROOT" in made["env"]:
            made["env"]["VLLM_CACHE_ROOT"] = made["cache"]
    made["memory"] = _memory(made)
    if "VLLM_CPU_KVCACHE_SPACE" in made["env"]:
        made["env"]["VLLM_CPU_KVCACHE_SPACE"] = str(made["memory"]["kv_bytes"] // GIB)
    made["start"] = _start(plan["start"])
    made["start_timeout_s"] = made["start"]["limit_s"]
    made["command"] = engine_command(made)
    made["hash"] = plan_hash(made)
    return made


def _model(plan: Plan, root: str) -> Dict[str, Any]:
    return the_canary("safetensors" if plan["engine"] == "vllm" else "gguf", root)


def _layout(plan: Plan, model: Dict[str, Any], told: List[str]) -> Layout:
    """That of the plan, as far as the canary can be split."""
    asked, stages = plan["tensor_parallel"], plan["pipeline_parallel"]
    if plan["engine"] != "vllm":
        return Layout(asked, stages)
    split = next(one for one in range(asked, 0, -1)
                 if not parallelism.objection(model, None, one))
    layout = Layout(split, min(stages, model["geometry"]["layers"]))
    if layout != Layout(asked, stages):
        told.append("It lies on %d of the %d devices (tensor parallel %d, %d parts of layers): "
                    "%s." % (layout.devices, asked * stages, layout.tensor_parallel, layout.stages,
                             parallelism.objection(model, None, asked)
                             or "it has %d layers" % model["geometry"]["layers"]))
    return layout


def _memory(made: Plan) -> Dict[str, Any]:
    """The breakdown with the canary in it, and vLLM's share of a device cut down to that."""
    memory, model = made["memory"], made["model"]
    shape = model["geometry"]
    per_token = shape["layers"] * shape["kv_heads"] * shape["head_dim"] * 2 * 2
    found = {**memory, "weights_bytes": model["bytes"], "kv_bytes_per_token": per_token,
             "kv_tokens": weights.CONTEXT, "kv_bytes": per_token * weights.CONTEXT,
             "largest_context": weights.CONTEXT, "source": "computed",
             # Its batch is as wide as the plan's, and its layers are narrower than any model's.
             "activation_bytes": min(memory["activation_bytes"], GIB)}
    beside = found["graph_bytes"] + found["context_bytes"]
    if made["utilisation"] is not None:
        limit = max(1, memory["limit_bytes"])
        made["utilisation"] = min(made["utilisation"], math.ceil(SHARE_BYTES / limit * 1000) / 1000)
        share = int(limit * made["utilisation"])
        found["kv_bytes"] = max(0, share - model["bytes"] - found["activation_bytes"])
        found["kv_tokens"] = found["kv_bytes"] // per_token
    elif "VLLM_CPU_KVCACHE_SPACE" in made["env"]:
        found["kv_bytes"] = GIB
        found["kv_tokens"] = GIB // per_token
    found["total_bytes"] = (found["weights_bytes"] + found["kv_bytes"]
                            + found["activation_bytes"] + beside)
    return found


def _start(start: Dict[str, Any]) -> Dict[str, Any]:
    """The start of the engine without the reading of a model."""
    own = start["compile_s"] + start["other_s"]
    return {**start, "read_s": 0, "expected_s": own, "cached": False, "seen": False,
            "limit_s": max(LEAST_SECONDS, FLOOR_SECONDS + PATIENCE * own)}
