#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: bring one endpoint to its plan, or leave the old one serving."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_switch
short_description: Switch an endpoint to a plan, prove it, or put the old one back
description:
  - Starts what the plan says in the place of what serves now, waits until it is ready and proves it
    with real tokens, all on the host and as one transaction. When any of that fails, the old
    definition and the old passport come back and the old engine is started again.
  - The work is done by a process of its own on the host, which this module only watches. A
    connection that is cut or a controller that dies ends nothing. Beside it stands a guard that
    puts back what was where the work is killed or takes too long.
  - Where the guard is killed too, the next run puts back, before it does anything else.
  - The passport is written when, and only when, the new endpoint is proven.
  - An engine of the plan that its manager started again, after a crash or a boot, is waited for. It
    is started anew where it does not get ready, and where processes of the one before it are left,
    which are ended.
options:
  name:
    description: Name of the endpoint.
    type: str
    required: true
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  manager:
    description:
      - What keeps the engine running. For C(absent) and C(previous) what native engines are kept
        by on this host.
    type: str
    choices: [systemd, supervisor, docker]
    required: true
  state:
    description:
      - V(present) brings the endpoint to the plan, V(absent) removes it.
      - V(trial) serves and proves O(trial) and puts back what was, where nothing serves under this
        name; where something does, V(present) does it in the course of its switch.
      - V(previous) goes back to the passport before this one.
    type: str
    choices: [present, absent, trial, previous]
    default: present
  definition:
    description: Text of the unit, of the supervisor program or of C(compose.yaml).
    type: str
  supervisord:
    description: The supervisord to start where the manager is C(supervisor) and none runs.
    type: path
  supervisor_config:
    description: Text of supervisord's own configuration.
    type: str
  plan:
    description: The plan, as C(deployment_plan) made it. Needed for C(present).
    type: dict
  trial:
    description:
      - The canary to serve and prove first, with the plan's engine on the plan's devices - C(key),
        C(plan), C(definition). It is recorded in C(canaries/KEY.json) under the root and not
        repeated.
    type: dict
  way_in:
    description:
      - The reverse proxy before the engine, as the role renders it; left out where clients ask the
        engine itself.
    type: dict
  facts:
    description: Facts of the host to keep in the passport.
    type: dict
    default: {}
  signatures:
    description: Rows of C(catalog/log_signatures.yml), by which an engine's log is read.
    type: list
    elements: dict
    default: []
  attempts:
    description: Attempts of this run that failed before; the passport tells them with this one.
    type: list
    elements: dict
    default: []
  keep:
    description: How many older generations stay, with what they need.
    type: int
    default: 2
  spared:
    description: Folders, images and paths of models that other plans of this run need.
    type: list
    elements: str
    default: []
  consent:
    description:
      - Whether containers of others may be started again, where systemd has to read its units anew
        and they would lose their GPUs by that.
    type: bool
    default: false
  proof:
    description:
      - How the endpoint is proven - C(streams), the requests that are sent at once, and C(floors),
        by the endpoint's name.
    type: dict
    default: {}
  request_timeout_s:
    description: Seconds allowed for one request of the proof.
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
    description: Says whether it would switch, and why, and changes nothing.
    support: full
  diff_mode:
    description: Shows the definition before and after.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Remove the endpoint
  endpoint_switch:
    name: demo
    root: /var/lib/firstlight
    manager: systemd
    state: absent

- name: Go back to what served before
  endpoint_switch:
    name: demo
    root: /var/lib/firstlight
    manager: systemd
    state: previous
"""

RETURN = r"""
name:
  description: The endpoint.
  returned: always
  type: str
reasons:
  description: Why the endpoint was, or would be, switched; empty when it is as wanted.
  returned: always
  type: list
  elements: str
finished:
  description: Whether the work has ended; if not, a further call with the same C(run) watches on.
  returned: always
  type: bool
progress:
  description: How far the engine is with its start, by its log.
  returned: when not finished
  type: dict
  sample: {text: loading weights, done: 12, total: 30, unit: shards}
passport:
  description: The endpoint's passport as it is now.
  returned: when the endpoint is there
  type: dict
verdict:
  description: The proof of a switch that was made, as C(smoke_inference) returns it.
  returned: when switched
  type: dict
attempt:
  description:
    - What is known of an attempt whose engine did not get ready, by which it can be made once more
      with a change. C(findings) is what its log says, without lines of it; C(words) what the
      patterns found, by the row's id.
  returned: when the engine did not get ready
  type: dict
  contains:
    at:
      description: When it failed, in UTC.
      type: str
    plan:
      description: The hash of the plan that was tried.
      type: str
    outcome:
      description: V(failed); in a passport the last one is V(proven).
      type: str
    adjustments:
      description: What the plan had taken up of earlier attempts.
      type: list
      elements: dict
    findings:
      description: What its log says, in Firstlight's shape of findings.
      type: list
      elements: dict
    trial:
      description: Whether it was the canary before the endpoint that did not get ready.
      type: bool
    words:
      description: What the pattern of each row found, by the row's id.
      type: dict
recovered:
  description: Whether an earlier switch was found half done and put back first.
  returned: when it wrote anything
  type: bool
removed:
  description: What was, or would be, stopped and removed, one line each.
  returned: when something was
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import endpoint_run, endpoint_work, services
from ansible.module_utils.firstlight.endpoint import Endpoint, NotServing
from ansible.module_utils.firstlight.findings import text
from ansible.module_utils.firstlight.planning import proof
from ansible.module_utils.firstlight.transaction import Busy


def plan(params, found, endpoint):
    """Why the endpoint has to be touched; empty when it is as wanted."""
    return endpoint_work.reasons(params, found, endpoint)


def apply(module, endpoint, params):
    """Have the work done on the host, and watch it."""
    def attempt(problem):
        made = endpoint_work.failed_attempt(params, problem)
        return {"attempt": made} if made else {}

    result = endpoint_run.watch(
        endpoint, params, lambda report: endpoint_work.do(endpoint, params, report),
        endpoint_work.limit_s(params), "work on", more=attempt)
    if "failed" in result:
        module.fail_json(msg=result.pop("failed"), name=endpoint.name, **result)
    return result


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "manager": {"type": "str", "required": True,
                        "choices": ["systemd", "supervisor", "docker"]},
            "state": {"type": "str", "default": "present",
                      "choices": ["present", "absent", "trial", "previous"]},
            "definition": {"type": "str"},
            "supervisord": {"type": "path"},
            "supervisor_config": {"type": "str"},
            "plan": {"type": "dict"},
            "trial": {"type": "dict"},
            "way_in": {"type": "dict"},
            "facts": {"type": "dict", "default": {}},
            "signatures": {"type": "list", "elements": "dict", "default": []},
            "attempts": {"type": "list", "elements": "dict", "default": []},
            "keep": {"type": "int", "default": 2},
            "spared": {"type": "list", "elements": "str", "default": []},
            "consent": {"type": "bool", "default": False},
            "proof": {"type": "dict", "default": {}},
            "request_timeout_s": {"type": "float", "default": 120.0},
            "run": {"type": "str", "default": ""},
            "wait_s": {"type": "float", "default": 20.0},
        },
        required_if=[("state", "present", ("definition", "plan")), ("state", "trial", ("trial",))],
        supports_check_mode=True,
    )
    params = module.params
    try:
        if params["plan"]:
            # What is wrong with it is said before anything is ended.
            proof.smoke_request(params["plan"], params["proof"])
        endpoint = Endpoint(params["root"], params["name"], params["manager"],
                            params["supervisord"] or "", params["signatures"], params["consent"],
                            [params["definition"], (params["trial"] or {}).get("definition")])
        result = _run(module, endpoint, params)
    except Busy as problem:
        module.fail_json(msg=endpoint_run.BUSY % problem)
    except (OSError, ValueError, NotServing, services.ServiceError) as problem:
        module.fail_json(msg="Endpoint %s: %s" % (params["name"], problem))
    module.exit_json(**result)


def _run(module, endpoint, params):
    if endpoint_run.has_begun(params):
        # The same run again: what was found before the work began is not asked again.
        result = {"name": endpoint.name, "reasons": [], "finished": True, "changed": True}
        result.update(apply(module, endpoint, params))
        return _finished(module, result, endpoint, params)
    found = endpoint.observe()
    reasons = plan(params, found, endpoint)
    # Its manager may have started it again, after a crash or a boot: it is waited for.
    loads = not reasons and params["state"] == "present" and endpoint.loads(found)
    result = {"changed": bool(reasons), "name": endpoint.name, "reasons": reasons,
              "finished": True}
    if module._diff and reasons:
        result["diff"] = endpoint_work.diff(endpoint, params, found)
    if reasons and params["state"] == "absent":
        result["removed"] = endpoint_work.to_remove(endpoint, found)
    if (reasons or loads) and not module.check_mode:
        result.update(apply(module, endpoint, params))
    return _finished(module, result, endpoint, params)


def _finished(module, result, endpoint, params):
    if not result["finished"]:
        result["changed"] = False
        return result
    kept = endpoint.passport()
    if params["state"] == "present" and params["way_in"]:
        for one in endpoint.way_in.warnings(params["plan"]):
            module.warn(text([one]))
    if params["state"] in ("present", "previous") and kept:
        result["passport"] = kept
    return result


if __name__ == "__main__":
    main()
