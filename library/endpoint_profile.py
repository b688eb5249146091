#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: have the engine of an endpoint record itself, and put back what served."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_profile
short_description: Record what an endpoint's engine does, within limits, and put back what served
description:
  - Ends the engine that serves, starts it by the same plan with a profiler on a port that nobody
    asks, warms it up, has it record a few requests, and starts again what served, by the same
    passport. All of it happens on the host and as one transaction; whatever goes wrong, what served
    comes back.
  - What records is the engine's own processes (C(/start_profile) and C(/stop_profile)). A profiler
    in a client sees nothing of them.
  - The work is done by a process of its own on the host, which this module only watches, beside a
    guard that puts back what was where the work is killed or takes too long. Time, the folder of
    the traces and the memory of the engine's processes are watched and have limits.
  - Traces are copied to C(endpoints/NAME/profile) under the root, read there, and judged - without
    work of the engine in them the module fails and says why. C(endpoints/NAME/profile.json) keeps
    the summary. The passport is not touched.
options:
  name:
    description: Name of the endpoint, which serves.
    type: str
    required: true
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  plan:
    description: The plan of the filter C(profile_plan).
    type: dict
    required: true
  supervisord:
    description: The supervisord to start where a supervisor keeps the endpoint and none runs.
    type: path
  signatures:
    description: Rows of C(catalog/log_signatures.yml), by which the engine's log is read.
    type: list
    elements: dict
    default: []
  request_timeout_s:
    description: Seconds allowed for one request of the proof of what serves afterwards.
    type: float
    default: 120.0
  run:
    description:
      - Who asks. A call with the same text finds the work that an earlier one began, and watches
        it further. Empty is someone new, who waits until the end.
    type: str
    default: ""
  wait_s:
    description: Seconds that a call with O(run) watches before it returns unfinished.
    type: float
    default: 20.0
attributes:
  check_mode:
    description: Says what would be started again, and changes nothing.
    support: full
  diff_mode:
    description: What serves is the same before and after.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Record what the engine of an endpoint does
  endpoint_profile:
    name: chat
    root: /var/lib/firstlight
    plan: "{{ (plan | profile_plan('/var/lib/firstlight', dialects, {'consent': true})).plan }}"
  register: __profiled
"""

RETURN = r"""
name:
  description: The endpoint.
  returned: always
  type: str
reasons:
  description: What is, or would be, started again.
  returned: always
  type: list
  elements: str
finished:
  description: Whether the work has ended; if not, a further call with the same C(run) watches on.
  returned: always
  type: bool
progress:
  description: How far it is.
  returned: when not finished
  type: dict
  sample: {text: recording}
findings:
  description: Why nothing was recorded, in Firstlight's shape of findings.
  returned: when it failed for a known reason
  type: list
  elements: dict
verdict:
  description: The proof of what serves afterwards, as C(smoke_inference) returns it.
  returned: when it was recorded
  type: dict
recovered:
  description: Whether an earlier change of the endpoint was found half done and put back first.
  returned: when it was recorded
  type: bool
profile:
  description: What was recorded, as C(profile.json) has it.
  returned: when it was recorded
  type: dict
  contains:
    at:
      description: When, in UTC.
      type: str
    endpoint:
      description: Its name.
      type: str
    plan:
      description: The hash of the plan that serves.
      type: str
    variant:
      description: The hash of the plan that was recorded.
      type: str
    engine:
      description: The engine.
      type: str
    engine_version:
      description: Its version.
      type: str
    profiler:
      description: V(torch) or V(nsys).
      type: str
    graphs:
      description: Whether the plan has CUDA graphs; else it runs eager, or on a CPU.
      type: bool
    graph_launches:
      description: How many CUDA graphs were started while it was recorded; null where unknown.
      type: int
    requests:
      description: How many were recorded, at once.
      type: int
    prompt_tokens:
      description: Tokens of each prompt.
      type: int
    output_tokens:
      description: Tokens of each answer.
      type: int
    iterations:
      description: Steps of the engine after which it stopped by itself; null where it does not.
      type: int
    traces:
      description:
        - C(file) in C(endpoints/NAME/profile), C(name) that the engine gave it, C(bytes) and
          C(events) of each trace. That of the API server's own process has no events.
      type: list
      elements: dict
    device:
      description:
        - Kernels and copies that took most of the devices' time, as C(name), C(calls), C(self_s),
          C(total_s) and C(share) of all of them. Empty on a CPU.
      type: list
      elements: dict
    host:
      description: Operators that took most of the host's time, without those inside them.
      type: list
      elements: dict
    span_s:
      description: Seconds from the first to the last piece of work; null where unknown.
      type: float
    busy_s:
      description: Seconds that the busiest device worked in; null where unknown.
      type: float
    start_s:
      description: Seconds until the engine with the profiler was ready.
      type: float
    requests_s:
      description: Seconds that the requests took while it recorded.
      type: float
    stop_s:
      description: Seconds that it took to write.
      type: float
    memory_bytes:
      description: What the engine's processes grew by.
      type: int
    disk_bytes:
      description: What its traces took where it wrote them.
      type: int
    findings:
      description: What is to be known of it, in Firstlight's shape of findings.
      type: list
      elements: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import endpoint_run, passport, profiler, services
from ansible.module_utils.firstlight.docker_service import Docker
from ansible.module_utils.firstlight.endpoint import Endpoint, NotServing
from ansible.module_utils.firstlight.planning import profile_service
from ansible.module_utils.firstlight.transaction import Busy


def plan(params, endpoint):
    """What will be started again."""
    return profiler.reasons(endpoint, params)


def apply(module, endpoint, params):
    """Have the work done on the host, and watch it."""
    def known(problem):
        found = getattr(problem, "findings", None)
        return {"findings": found} if found else {}

    result = endpoint_run.watch(
        endpoint, params, lambda report: profiler.do(endpoint, params, report),
        profiler.limit_s(params), "profile of",
        clear=lambda: profiler.clear(endpoint, params["plan"]), more=known)
    if "failed" in result:
        module.fail_json(msg=result.pop("failed"), name=endpoint.name, **result)
    return result


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "plan": {"type": "dict", "required": True},
            "supervisord": {"type": "path"},
            "signatures": {"type": "list", "elements": "dict", "default": []},
            "request_timeout_s": {"type": "float", "default": 120.0},
            "run": {"type": "str", "default": ""},
            "wait_s": {"type": "float", "default": 20.0},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = _run(module, params)
    except Busy as problem:
        module.fail_json(msg=endpoint_run.BUSY % problem)
    except (OSError, NotServing, services.ServiceError) as problem:
        module.fail_json(msg="Endpoint %s: %s" % (params["name"], problem))
    module.exit_json(**result)


def _run(module, params):
    kept = passport.read(params["root"], params["name"])
    if kept is None:
        raise NotServing("it has no passport: bring it with playbooks/site.yml first")
    manager = kept["service"]["manager"]
    endpoint = Endpoint(
        params["root"], params["name"], manager, params["supervisord"] or "",
        params["signatures"], coming=[profile_service.container_definition(params["plan"])]
        if manager == Docker.KIND else [])
    result = {"name": endpoint.name, "reasons": [], "finished": True, "changed": True}
    if not endpoint_run.has_begun(params):
        result["reasons"] = plan(params, endpoint)
        if module.check_mode:
            return result
    result.update(apply(module, endpoint, params))
    if not result["finished"]:
        result["changed"] = False
    return result


if __name__ == "__main__":
    main()
