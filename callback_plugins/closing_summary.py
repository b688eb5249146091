# SPDX-License-Identifier: Apache-2.0
"""What a run ended with, for the person who started it."""

from __future__ import annotations

import json
import os
import shlex
import time

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: closing_summary
type: aggregate
short_description: The endpoints that a run ended with, and where its time went
description:
  - After the recap, prints every proven endpoint with a request to try, what a teardown removed,
    and the time of each phase. Prints nothing for a playbook that has neither.
requirements:
  - Enable in configuration (C(callbacks_enabled)).
"""

# A role is a phase of the way; the order is that of the playbook.
PHASES = {
    "toolbelt": "install",
    "deployment_plan": "observe and decide",
    "inference_endpoint": "act",
    "endpoint_smoke": "prove",
    "host_report": "report",
}


class CallbackModule(CallbackBase):
    """Times the roles as they pass and prints at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "closing_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._phases = {}
        self._phase = None
        self._since = time.monotonic() - _process_age()
        # What came before Ansible, where the caller timed it (make does).
        seconds = os.environ.get("FIRSTLIGHT_CONTROLLER_SECONDS")
        if seconds:
            self._phases["controller"] = float(seconds)

    def v2_playbook_on_start(self, playbook):
        """The time until here is Ansible's own start."""
        self._close("ansible start")

    def v2_playbook_on_task_start(self, task, is_conditional):
        """A task of another role begins another phase."""
        role = task._role.get_name() if task._role else ""
        phase = PHASES.get(role, "other")
        if phase != self._phase:
            self._close(self._phase)
            self._phase = phase

    def v2_playbook_on_stats(self, stats):
        """Print what there is to say."""
        self._close(self._phase)
        hosts = {host: said for host, said in stats.custom.items() if host != "_run"}
        lines = []
        for host, said in sorted(hosts.items()):
            try:
                lines += self._endpoints(host, said)
            except (AttributeError, KeyError, TypeError) as problem:
                # Passports come from hosts; one of another shape must not hide the others.
                lines += ["", "%s: its passports cannot be read (%r)" % (host, problem)]
            lines += self._removed(host, said)
        if lines:
            lines.append("")
            lines.append("time      " + " · ".join(
                "%s %.1f s" % (name, seconds) for name, seconds in self._phases.items()))
            served = any("firstlight_passports" in said for said in hosts.values())
            self._display.banner("FIRST LIGHT" if served else "LIGHTS OUT")
            for line in lines:
                self._display.display(line)

    def _close(self, phase):
        now = time.monotonic()
        if phase:
            self._phases[phase] = self._phases.get(phase, 0.0) + now - self._since
        self._since = now

    def _endpoints(self, host, said):
        verdicts = {one["url"]: one for one in said.get("firstlight_verdicts", [])}
        lines = []
        for passport in said.get("firstlight_passports", []):
            plan = passport["plan"]
            verdict = verdicts.get(plan["url"])
            standing = "not asked" if verdict is None else (
                "proven" if verdict["passed"] else "NOT proven")
            figures = verdict["figures"] if verdict else passport["smoke"]["figures"]
            lines += [
                "",
                "%s on %s: %s" % (plan["name"], host, standing),
                "endpoint  %s" % plan["url"],
                "engine    %s %s (%s)" % (
                    plan["engine"], plan["engine_version"], plan["runtime"]),
                "model     %s (%s %s), context %d" % (
                    plan["model"]["served_name"], plan["model"]["format"],
                    plan["model"]["quantisation"], plan["context"]),
                "speed     %s tokens/s in one stream, first token after %s s" % (
                    figures.get("tokens_per_second", "?"), figures.get("first_token_s", "?")),
                "engine up %s s after its start" % passport["phases"]["ready_s"],
                "passport  %s/endpoints/%s/passport.json" % (
                    said["firstlight_root"], plan["name"]),
                "try       %s" % _curl(plan),
            ]
            for one in (verdict or {}).get("findings", []):
                lines.append("%-9s %s: found %s, wanted %s" % (
                    one["severity"], one["id"], one["found"], one["wanted"]))
        return lines

    def _removed(self, host, said):
        if "firstlight_removed" not in said:
            return []
        removed = said["firstlight_removed"]
        did = "would be removed" if said.get("firstlight_check_mode") else "removed"
        return ["", "%s on %s:" % (did, host)] + ["  " + one for one in removed or ["nothing"]]


def _process_age():
    """Seconds that this process has run: what Ansible needed before the first callback."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _curl(plan):
    """A request to try, quoted for a shell: names of models come from files."""
    oracle = plan.get("oracle")
    payload = {
        "model": plan["model"]["served_name"],
        "prompt": oracle["prompt"] if oracle else "Once upon a time",
        "max_tokens": 24,
        "temperature": 0,
    }
    return shlex.join([
        "curl", "-s", plan["url"] + "/v1/completions", "-H", "Content-Type: application/json",
        "-d", json.dumps(payload),
    ])
