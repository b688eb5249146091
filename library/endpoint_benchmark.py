#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a short load for an endpoint, kept in its passport."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_benchmark
short_description: Put a short load on an endpoint and compare it with the last one
description:
  - Asks a serving endpoint on loopback for a fixed load, at several numbers of streams, and keeps
    what came of it as C(benchmark) in its passport. Nothing else of the passport changes.
  - vLLM is asked by C(vllm bench serve) where that is there. llama.cpp is asked by our own load,
    and measured by C(llama-bench) as well where that is there and memory holds the model twice.
    Else it is our own load.
  - Prompts and answers are cut to the context of the endpoint, all streams together to what
    llama.cpp has for them.
  - A result with requests that failed is a finding and is not kept.
options:
  name:
    description: Name of the endpoint.
    type: str
    required: true
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  tool:
    description:
      - V(auto) takes the engine's own tool where it can be used, and says why where it cannot.
        V(engine) takes nothing else, V(firstlight) takes our own load.
    type: str
    choices: [auto, engine, firstlight]
    default: auto
  concurrencies:
    description: Numbers of streams to measure at. Those that the engine does not answer at a time
      are left out.
    type: list
    elements: int
    default: [1, 4, 16]
  requests_per_stream:
    description: Requests of each stream, one after the other.
    type: int
    default: 3
  prompt_tokens:
    description: Tokens of a prompt, at most.
    type: int
    default: 256
  output_tokens:
    description: Tokens of an answer, at most.
    type: int
    default: 128
  request_timeout_s:
    description: Seconds allowed for one request of our own load.
    type: float
    default: 120.0
  limit_s:
    description: Seconds allowed for all of it. What is measured by then is kept.
    type: float
    default: 300.0
  tolerance:
    description: The share by which a figure may be worse than the last one without a warning.
    type: float
    default: 0.15
attributes:
  check_mode:
    description: Says what it would measure, asks nothing and keeps nothing.
    support: full
  diff_mode:
    description: A measurement has no state before and after.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Measure the endpoint
  endpoint_benchmark:
    name: chat
    root: /var/lib/firstlight
    concurrencies: [1, 8]
  register: __measured
  failed_when: __measured.findings | selectattr('severity', 'equalto', 'error') | length > 0
"""

RETURN = r"""
name:
  description: The endpoint.
  returned: always
  type: str
work:
  description: What is, or would be, measured, one line each.
  returned: always
  type: list
  elements: str
  sample: [at 4 streams 12 requests of 256 + 128 tokens]
findings:
  description:
    - Requests that failed, a result that is slower than the last one, in Firstlight's shape of
      findings. What is slower is a warning.
  returned: always
  type: list
  elements: dict
benchmark:
  description: What was measured, as the passport has it unless requests failed.
  returned: when something was measured
  type: dict
  contains:
    schema:
      description: The version of this shape.
      type: int
    at:
      description: When it was measured, in UTC.
      type: str
    engine:
      description: The engine that was measured.
      type: str
    engine_version:
      description: Its version.
      type: str
    tool:
      description: What asked the endpoint.
      type: str
    points:
      description:
        - Each load and its figures. C(requests) are those that were answered or failed. A figure
          that nothing was measured of is C(null).
      type: list
      elements: dict
      sample:
        - {tool: vllm bench serve, concurrency: 4, requests: 12, failed: 0, prompt_tokens: 256,
           output_tokens: 128, seconds: 3.1, output_tokens_per_second: 495.2,
           first_token_p50_s: 0.041, first_token_p99_s: 0.06, per_token_p50_s: 0.0078}
    notes:
      description: What was left out, and why.
      type: list
      elements: str
before:
  description: The last result, of this passport or of the youngest older one that has any.
  returned: when something was measured and there is one
  type: dict
passport:
  description: The passport with the result.
  returned: when the result was kept
  type: dict
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import bench_tools, load, passport, paths
from ansible.module_utils.firstlight.bench_tools import Inside, Native, Unusable
from ansible.module_utils.firstlight.endpoint import Endpoint, NotServing
from ansible.module_utils.firstlight.findings import blocking, finding
from ansible.module_utils.firstlight.planning import benchmark
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.services import ServiceError
from ansible.module_utils.firstlight.transaction import Busy, Lock

LOCK_S = 30.0
MEMINFO = "/proc/meminfo"
SMI_S = 30
MIB = 2**20
# Each is a thread.
MOST_STREAMS = 512
# A load is not begun with less than this left.
LEAST_S = 1.0
POSITIVE = ("requests_per_stream", "prompt_tokens", "output_tokens", "request_timeout_s", "limit_s")


class Unwritten(Exception):
    """A result that was not kept."""


def observe(root, name, asks):
    """The endpoint's passport, the last result that it or an older one has, and whether it serves.

    :param asks: whether the endpoint may be asked; one that is not counts as serving.
    """
    kept = passport.read(root, name)
    if kept is None:
        return None, None, False
    endpoint = Endpoint(root, name, kept["service"]["manager"])
    last = benchmark.last_benchmark([kept, *endpoint.generations()])
    return kept, last, not asks or endpoint.serves(kept["plan"])


def plan(kept, params):
    """The loads, the smallest first.

    :raises ValueError: for a plan that no load can be made for.
    """
    try:
        wanted = kept["plan"]
        _ = (wanted["runtime"], wanted["engine_version"], wanted["command"]["argv"][0],
             wanted["command"]["env"].items(), wanted["model"]["path"])
        return benchmark.points(wanted, params)
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        raise ValueError("its passport lacks what a load is made by (%r)" % problem) from problem


def apply(kept, points, params):
    """Measure; gives the benchmark, and what the first request that failed ended with.

    :raises Unusable: where the engine's own tool was asked for and cannot be used.
    """
    limits = load.Limits(params["request_timeout_s"], time.monotonic() + params["limit_s"])
    measured, notes, why = [], [], ""
    wanted = kept["plan"]
    server = load.Server(wanted["url"], wanted["model"]["served_name"],
                         (wanted["model"].get("geometry") or {}).get("vocabulary"))
    load.warm_up(server, points[0], limits)
    if params["tool"] != "firstlight":
        measured, why = _by_engine(kept, points, limits, notes, params["tool"] == "engine")
    asked = any(one["tool"] != benchmark.LLAMA_BENCH for one in measured)
    if not asked and params["tool"] != "engine":
        more, why = _by_ours(server, points, limits, notes)
        measured += more
    tools = [one["tool"] for one in measured if one["tool"] != benchmark.LLAMA_BENCH]
    return {
        "schema": benchmark.SCHEMA, "at": passport.now(), "engine": wanted["engine"],
        "engine_version": wanted["engine_version"],
        "tool": tools[0] if tools else benchmark.LLAMA_BENCH, "points": measured, "notes": notes,
    }, why


def _by_engine(kept, points, limits, notes, alone):
    """Points of the engine's own tool; why there are none is a note, where ours is the next."""
    wanted, where = kept["plan"], _where(kept)
    try:
        if wanted["engine"] == "vllm":
            return _by_vllm(wanted, where, points, limits, notes)
        return _by_llama(wanted, where, points, limits), ""
    except Unusable as problem:
        if alone:
            raise
        notes.append(str(problem))
    return [], ""


def _by_vllm(wanted, where, points, limits, notes):
    measured, first = [], ""
    for one in points:
        left = limits.deadline - time.monotonic()
        if left < LEAST_S:
            notes.append(_not_begun(one))
            continue
        try:
            found, why = bench_tools.vllm_bench(wanted, where, one, left)
            measured.append(found)
            first = first or why
        except Unusable as problem:
            # What was measured before it stays.
            if not measured:
                raise
            notes.append("%s: %s" % (_said(one), problem))
    return measured, first


def _by_llama(wanted, where, points, limits):
    if wanted["runtime"] != "docker" and not bench_tools.llama_bench_programs(wanted):
        # The demo's engine has none, which nobody can help.
        raise Unusable("this engine brings no benchmark of its own")
    short = _short_of_memory(wanted)
    if short:
        raise Unusable("llama-bench loads the model once more, and %s" % short)
    # Half of the time is for the endpoint itself.
    half = (limits.deadline - time.monotonic()) / 2
    return [bench_tools.llama_bench(wanted, where, points[0], half)]


def _by_ours(server, points, limits, notes):
    measured, first = [], ""
    for one in points:
        if limits.deadline - time.monotonic() < LEAST_S and measured:
            notes.append(_not_begun(one))
            continue
        found, why = load.put(server, one, limits)
        first = first or why
        if found["requests"] < one["requests"]:
            notes.append("%s: %d of %d were not answered within the time for all of it" % (
                _said(one), one["requests"] - found["requests"], one["requests"]))
        if found["requests"]:
            measured.append(found)
    return measured, first


def _where(kept):
    if kept["plan"]["runtime"] == "docker":
        return Inside(str(kept["service"].get("container")))
    return Native(kept["plan"]["command"]["env"])


def _short_of_memory(wanted):
    """Why the model cannot be loaded once more; empty where it can."""
    needed = wanted["memory"].get("total_bytes")
    if type(needed) is not int:
        return "nobody knows how much it takes"
    free = _free_on_gpus(wanted["gpus"]) if wanted["gpus"] else _free()
    if free is None:
        return "the free memory cannot be read"
    if free < needed:
        return "of the %d MiB that it takes %d are free" % (needed // MIB, free // MIB)
    return ""


def _free():
    """What of the RAM is available, in bytes, or None."""
    for line in (paths.read(MEMINFO) or b"").decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["MemAvailable:"] and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _free_on_gpus(uuids):
    """The memory that is free on the one that has least, in bytes, or None."""
    ran = run(["nvidia-smi", "--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits"],
              timeout_s=SMI_S)
    told = dict(line.split(", ", 1) for line in ran.stdout.splitlines() if ", " in line)
    free = [told.get(one, "").strip() for one in uuids]
    return min(int(one) for one in free) * MIB if all(one.isdigit() for one in free) else None


def _said(point):
    return "at %d stream%s %d requests of %d + %d tokens" % (
        point["concurrency"], "" if point["concurrency"] == 1 else "s", point["requests"],
        point["prompt_tokens"], point["output_tokens"])


def _not_begun(point):
    return "%s: not begun, the time for all of it was over" % _said(point)


def keep(root, name, kept, result):
    """Write the result into the passport, unless that changed meanwhile; gives the passport.

    :raises Unwritten: it is another, or about to be.
    :raises Busy: the endpoint is being switched.
    :raises OSError: it cannot be written.
    """
    journal = os.path.join(root, "journal", "endpoint-%s" % name)
    with Lock(journal + ".lock", LOCK_S):
        if os.path.exists(journal + ".json"):
            raise Unwritten("a switch of it was ended in the middle: run site.yml")
        now = passport.read(root, name)
        if now is None or now["plan"]["hash"] != kept["plan"]["hash"] or (
                now.get("written") != kept.get("written")):
            raise Unwritten("it was switched while it was measured: run it again")
        now = dict(now, benchmark=result)
        passport.write_json(passport.path(root, name), now)
        return now


def _nothing_to_measure(subject, found, wanted, remedy):
    return finding("benchmark-not-made", subject, found, wanted, remedy)


def judge(name, kept, last, result, why, params):
    """The findings on a result."""
    subject = "endpoint %s" % name
    if not result["points"]:
        return [_nothing_to_measure(
            subject, "no request was answered within %g s" % params["limit_s"],
            "one that is", "raise endpoint_benchmark_limit_s, or ask for fewer tokens")]
    return benchmark.failures(subject, result, why) + benchmark.compare(
        subject, result, last, benchmark.model_of(kept["plan"]), params["tolerance"])


def measure(module, params):
    """All of it, as what the module returns."""
    name, root = params["name"], params["root"]
    told = {"changed": False, "name": name, "work": [], "findings": []}
    kept, last, serves = observe(root, name, asks=not module.check_mode)
    if kept is None:
        return dict(told, findings=[_nothing_to_measure(
            "endpoint %s" % name, "it has no passport in %s" % root, "an endpoint that was proven",
            "bring it with site.yml first")])
    if not serves:
        return dict(told, findings=[_nothing_to_measure(
            "endpoint %s" % name, "the engine of its passport does not answer on %s"
            % kept["plan"]["url"], "one that serves",
            "read its log with playbooks/diagnose.yml, or bring it anew with site.yml")])
    try:
        points = plan(kept, params)
    except ValueError as problem:
        return dict(told, findings=[_nothing_to_measure(
            "endpoint %s" % name, str(problem), "an endpoint that a load can be made for",
            "bring it anew with site.yml")])
    told["work"] = [_said(one) for one in points]
    if module.check_mode:
        return dict(told, changed=True)
    result, why = apply(kept, points, params)
    told["findings"] = judge(name, kept, last, result, why, params)
    told["benchmark"] = result
    if last:
        told["before"] = last["benchmark"]
    if not blocking(told["findings"]):
        told["passport"] = keep(root, name, kept, result)
        told["changed"] = True
    return told


def main():
    """Observe, plan, and unless in check mode measure."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "tool": {"type": "str", "default": "auto",
                     "choices": ["auto", "engine", "firstlight"]},
            "concurrencies": {"type": "list", "elements": "int", "default": [1, 4, 16]},
            "requests_per_stream": {"type": "int", "default": 3},
            "prompt_tokens": {"type": "int", "default": 256},
            "output_tokens": {"type": "int", "default": 128},
            "request_timeout_s": {"type": "float", "default": 120.0},
            "limit_s": {"type": "float", "default": 300.0},
            "tolerance": {"type": "float", "default": 0.15},
        },
        supports_check_mode=True,
    )
    params = module.params
    wrong = ["%s is %s, wanted more than 0" % (key, params[key]) for key in POSITIVE
             if not params[key] > 0]
    if not params["concurrencies"] or not all(
            1 <= one <= MOST_STREAMS for one in params["concurrencies"]):
        wrong.append("concurrencies is %s, wanted numbers from 1 to %d" % (
            params["concurrencies"], MOST_STREAMS))
    if not 0 <= params["tolerance"] < 1:
        wrong.append("tolerance is %s, wanted a share from 0 to less than 1" % params["tolerance"])
    if wrong:
        module.fail_json(msg="; ".join(wrong))
    try:
        result = measure(module, params)
    except Busy as problem:
        said = "%s; the result was not kept" % problem
    except Unwritten as problem:
        said = "the result was not kept: %s" % problem
    except (Unusable, NotServing, ServiceError) as problem:
        said = str(problem)
    except OSError as problem:
        said = "%s: %s" % (problem.filename, problem.strerror)
    else:
        module.exit_json(**result)
    module.fail_json(msg="Endpoint %s: %s" % (params["name"], said), name=params["name"])



if __name__ == "__main__":
    main()
