#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: bring one native endpoint to its plan, or leave the old one serving."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_switch
short_description: Switch an endpoint to a plan, prove it, or put the old one back
description:
  - Stops what serves now, starts what the plan says, waits until it is ready and proves it with
    real tokens, all on the host and as one transaction. When any of that fails, the old
    definition and the old passport come back and the old engine is started again.
  - A run that was killed in the middle is put back by the next one, before it does anything else.
  - The passport is written when, and only when, the new endpoint is proven.
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
    description: What keeps the engine running.
    type: str
    choices: [systemd, supervisor]
    required: true
  state:
    description: Whether the endpoint should be there.
    type: str
    choices: [present, absent]
    default: present
  definition:
    description: Text of the unit or of the supervisor program. Needed for C(present).
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
  oracle:
    description: What the canary must answer; left out for any other model.
    type: dict
  facts:
    description: Facts of the host to keep in the passport.
    type: dict
    default: {}
  request_timeout_s:
    description: Seconds allowed for one request of the proof.
    type: float
    default: 120.0
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
passport:
  description: The endpoint's passport as it is now.
  returned: when the endpoint is there
  type: dict
verdict:
  description: The proof of a switch that was made, as C(smoke_inference) returns it.
  returned: when switched
  type: dict
recovered:
  description: Whether an earlier switch was found half done and put back first.
  returned: when it wrote anything
  type: bool
removed:
  description: What C(absent) stopped and removed, or would, one line each.
  returned: when absent and there was something
  type: list
  elements: str
"""

import contextlib
import glob
import os
import time
import urllib.parse

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import passport, paths, processes, services, smoke
from ansible.module_utils.firstlight.findings import text
from ansible.module_utils.firstlight.http_client import get
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed, Transaction

# How long a running engine may be silent and idle before it counts as hanging.
HANG_SECONDS = 5


class NotServing(Exception):
    """The new endpoint did not come up or is not right; the message is for the operator."""


class Endpoint:
    """One endpoint's files and service on this host."""

    def __init__(self, params):
        self.name, self.root = params["name"], params["root"]
        self.service = services.manager(params["manager"], self.root, params["supervisord"] or "")
        self.folder = os.path.join(self.root, "endpoints", self.name)
        self.passport_path = passport.path(self.root, self.name)
        self.definition_path = self.service.files(self.name)[0]

    def observe(self):
        """What is there now, as one dict."""
        definition = paths.read(self.definition_path)
        status = self.service.status(self.name)
        running = processes.engines(self.root).get(self.name, [])
        managed = [one["plan"] for one in running if one["pid"] == status["pid"]]
        return {
            "definition": None if definition is None else definition.decode("utf-8", "replace"),
            "status": status,
            "pids": [one["pid"] for one in running],
            "running_plan": managed[0] if managed else None,
            "passport": self.passport(),
            "files": self.files(),
            "half_done": self.journal().half_done,
        }

    def passport(self):
        """The passport, or None when there is none that can be relied on."""
        return passport.read(self.root, self.name)

    def files(self):
        """What this module and the engine's log wrote into the endpoint's folder."""
        patterns = ("passport.json", "passports/*.json", "last_check.json", "engine.log*")
        folder = glob.escape(self.folder)
        return sorted(
            file for pattern in patterns for file in glob.glob(os.path.join(folder, pattern)))

    def hangs(self, found):
        """Whether an engine that had its time to start gives no answer and does no work.

        A busy engine may keep ``/health`` waiting too, but it uses its processor.
        """
        wanted, pid = found["passport"]["plan"], found["status"]["pid"]
        worked = processes.cpu_seconds(pid)
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline:
            if get(wanted["url"] + "/health", timeout_s=HANG_SECONDS).status:
                return False
            time.sleep(0.2)
        age = processes.age_seconds(pid)
        return (age is not None and age > wanted["start_timeout_s"]
                and processes.cpu_seconds(pid) == worked)

    def journal(self):
        """The transaction that every change of this endpoint is part of."""
        return Transaction(
            os.path.join(self.root, "journal"), "endpoint-" + self.name, self.put_back)

    def put_back(self):
        """Make the service follow the files that were put back, and wait until it serves.

        An old engine that does not come up is no reason to keep the journal: its files are back,
        and a next run must be free to try something else. What serves is said at the end.
        """
        kept = self.passport()
        with contextlib.suppress(NotServing, services.ServiceError, TimeoutError):
            self.service.follow(self.name)
            if kept and os.path.exists(self.definition_path):
                self.wait_until_ready(kept["plan"])

    def wait_until_ready(self, wanted):
        """Seconds until ``/health`` answered 200.

        :raises NotServing: when the engine died or the plan's time is over; with the log's end.
        """
        started = time.monotonic()
        while True:
            answer = get(wanted["url"] + "/health", timeout_s=5)
            status = self.service.status(self.name)
            elapsed = time.monotonic() - started
            # The service must be the one that answers: another process may hold the port.
            if answer.status == 200 and status["state"] in ("running", "starting") \
                    and self.listens(wanted):
                return round(elapsed, 3)
            if status["state"] == "failed":
                raise NotServing("The engine of %s died (%s)." % (self.name, status["detail"])
                                 + self._log())
            if elapsed > wanted["start_timeout_s"]:
                said = answer.brief() if answer.status != 200 else "another process answers"
                raise NotServing(
                    "The engine of %s was not ready within %d s: %s on %s/health."
                    % (self.name, wanted["start_timeout_s"], said, wanted["url"])
                    + self._log())
            time.sleep(0.1)

    def listens(self, wanted):
        """Whether it is a process of this endpoint that listens on the plan's port."""
        port = urllib.parse.urlsplit(wanted["url"]).port
        return processes.listens(self.root, self.name, port)

    def _log(self):
        return " Its log ends:\n" + self.service.log_tail(self.name)


def plan(params, found, hangs=lambda: False):
    """Why the endpoint has to be switched; empty when it is as wanted."""
    reasons = ["an earlier switch of it was ended in the middle"] if found["half_done"] else []
    if params["state"] == "absent":
        if found["definition"] is not None or found["pids"] or found["files"]:
            reasons.append("it is there and should not be")
        return reasons
    wanted = params["plan"]["hash"]
    if found["passport"] is None:
        reasons.append("it has no passport yet")
    elif found["passport"]["plan"]["hash"] != wanted:
        reasons.append("its plan changed from %s to %s" % (
            found["passport"]["plan"]["hash"][:12], wanted[:12]))
    if found["definition"] != params["definition"]:
        reasons.append("its service definition is not the plan's")
    elif found["running_plan"] != wanted:
        reasons.append("its engine is %s" % found["status"]["state"])
    elif not reasons and hangs():
        reasons.append("its engine hangs: no answer and no work for %d s" % HANG_SECONDS)
    return reasons


def apply(endpoint, params):
    """Switch: change, start, prove; the transaction puts everything back when one fails."""
    wanted, phases = params["plan"], {}
    with endpoint.journal() as change:
        # Only now is it sure that nothing is half done, by an earlier run or by one beside us.
        found = endpoint.observe()
        if not plan(params, found, lambda: endpoint.hangs(found)):
            return {"changed": change.recovered, "recovered": change.recovered}
        for path in endpoint.service.files(endpoint.name) + [endpoint.passport_path]:
            change.snapshot(path)
        if params["supervisor_config"]:
            _write_supervisor_config(endpoint, params["supervisor_config"])
        os.makedirs(endpoint.folder, exist_ok=True)
        paths.write(endpoint.definition_path, params["definition"].encode())
        endpoint.service.write_link(endpoint.name)
        started = time.monotonic()
        endpoint.service.follow(endpoint.name)
        phases["start_s"] = round(time.monotonic() - started, 3)
        phases["ready_s"] = endpoint.wait_until_ready(wanted)
        verdict = smoke.prove(smoke.Target(
            wanted["url"], wanted["model"]["served_name"], params["oracle"],
            wanted["model"]["chat_template"], params["request_timeout_s"]))
        if not verdict["passed"]:
            raise NotServing("The new endpoint %s is not right:\n%s" % (
                endpoint.name, text(verdict["findings"])))
        phases["proof_s"] = round(sum(one["seconds"] for one in verdict["checks"]), 3)
        if found["passport"] and found["passport"]["plan"]["hash"] != wanted["hash"]:
            _keep_old_passport(endpoint, found["passport"])
        passport.write_json(
            endpoint.passport_path, _passport(endpoint, params, verdict, phases))
    passport.write_check(os.path.join(endpoint.folder, "last_check.json"), verdict)
    return {"verdict": verdict, "recovered": change.recovered}


def _write_supervisor_config(endpoint, config):
    """supervisord reads it at its start; a change reaches the one that runs at its next start."""
    path = endpoint.service.config
    if paths.read(path) != config.encode():
        paths.write(path, config.encode(), mode=0o600)


def _passport(endpoint, params, verdict, phases):
    observed = _resident_bytes(endpoint.service.status(endpoint.name)["pid"])
    return {
        "schema": passport.SCHEMA,
        "endpoint": endpoint.name,
        "written": passport.now(),
        "plan": params["plan"],
        "facts": params["facts"],
        "service": {"manager": params["manager"], "definition": endpoint.definition_path},
        "memory": {
            "predicted_bytes": params["plan"]["memory"]["total_bytes"],
            "observed_bytes": observed,
        },
        "smoke": {"figures": verdict["figures"], "checks": verdict["checks"],
                  "findings": verdict["findings"]},
        "phases": phases,
    }


def _keep_old_passport(endpoint, old):
    """The passport of what served until now, under the hash of its plan."""
    name = os.path.basename(str(old["plan"]["hash"]))[:12]
    passport.write_json(os.path.join(endpoint.folder, "passports", name + ".json"), old)


def _resident_bytes(pid):
    """What the engine's process holds in RAM now, or None when it cannot be read."""
    try:
        with open("/proc/%s/status" % pid, encoding="utf-8") as file:
            lines = [line.split() for line in file if line.startswith("VmRSS:")]
        return int(lines[0][1]) * 1024
    except (OSError, IndexError, ValueError):
        return None


def to_remove(endpoint, found):
    """What removing the endpoint ends and deletes, one line each."""
    definitions = [path for path in endpoint.service.files(endpoint.name) if os.path.lexists(path)]
    return (["process %d of endpoint %s" % (pid, endpoint.name) for pid in found["pids"]]
            + ["file %s" % path for path in definitions]
            + (["what we wrote in %s" % endpoint.folder] if found["files"] else []))


def remove(endpoint):
    """Stop the endpoint and remove what was written for it alone; says what was removed."""
    with endpoint.journal() as change:
        found = endpoint.observe()
        removed = to_remove(endpoint, found)
        for path in endpoint.service.files(endpoint.name):
            change.snapshot(path)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        endpoint.service.follow(endpoint.name)
        paths.remove(endpoint.files(), endpoint.folder, "passports")
        change.forget_lock()
    return {"removed": removed, "recovered": change.recovered}


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "manager": {"type": "str", "choices": ["systemd", "supervisor"], "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "definition": {"type": "str"},
            "supervisord": {"type": "path"},
            "supervisor_config": {"type": "str"},
            "plan": {"type": "dict"},
            "oracle": {"type": "dict"},
            "facts": {"type": "dict", "default": {}},
            "request_timeout_s": {"type": "float", "default": 120.0},
        },
        required_if=[("state", "present", ("definition", "plan"))],
        supports_check_mode=True,
    )
    params = module.params
    endpoint = Endpoint(params)
    try:
        result = _run(module, endpoint, params)
    except Busy as problem:
        module.fail_json(msg="%s; nothing was changed. Run again when it has ended." % problem)
    except RollbackFailed as problem:
        module.fail_json(msg=str(problem))
    except NotServing as problem:
        module.fail_json(msg="%s\n%s" % (problem, _what_serves(endpoint)))
    except (OSError, services.ServiceError) as problem:
        module.fail_json(msg="Endpoint %s: %s\n%s" % (
            endpoint.name, problem, _what_serves(endpoint)))
    module.exit_json(**result)


def _run(module, endpoint, params):
    found = endpoint.observe()
    reasons = plan(params, found, lambda: endpoint.hangs(found))
    result = {"changed": bool(reasons), "name": endpoint.name, "reasons": reasons}
    if module._diff and reasons:
        result["diff"] = {
            "before_header": endpoint.definition_path,
            "after_header": endpoint.definition_path,
            "before": found["definition"] or "",
            "after": params["definition"] or "",
        }
    if reasons and params["state"] == "absent":
        result["removed"] = to_remove(endpoint, found)
    if reasons and not module.check_mode:
        if params["state"] == "absent":
            result.update(remove(endpoint))
        else:
            result.update(apply(endpoint, params))
    kept = endpoint.passport()
    if params["state"] == "present" and kept:
        result["passport"] = kept
    return result


def _what_serves(endpoint):
    """One sentence on what is left after a failed switch."""
    kept = endpoint.passport()
    if kept is None:
        return "Nothing proven served under this name before, so nothing was put back."
    url = kept["plan"]["url"]
    answer = get(url + "/health", timeout_s=5)
    if answer.status == 200 and endpoint.listens(kept["plan"]):
        return "What served before is back on %s." % url
    return "What served before is NOT back on %s: %s." % (url, answer.brief())


if __name__ == "__main__":
    main()
