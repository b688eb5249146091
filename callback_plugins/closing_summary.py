# SPDX-License-Identifier: Apache-2.0
"""What a run ended with, for the person who started it."""

from __future__ import annotations

import json
import os
import shlex
import time

import ansible.module_utils
from ansible import constants as C
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback import CallbackBase

# Core looks into our module_utils for modules only.
ansible.module_utils.__path__.append(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils"))

from ansible.module_utils.firstlight.task_results import (
    hosts_of,
    is_one_document,
    name_in,
    plain,
    reason_of,
    stage_of,
)

DOCUMENTATION = """
name: closing_summary
type: aggregate
short_description: The endpoints that a run ended with, and where its time went
description:
  - After the recap, prints every endpoint with a request to try (of a fleet one line for each),
    what a teardown removed, which hosts failed where and why, and the wall time of each role.
    Prints nothing for a playbook that has none of these.
  - Works beside every stdout callback. Beside one that prints JSON it is silent.
requirements:
  - Enable in configuration (C(callbacks_enabled)).
"""

# More endpoints than these have a line each instead of a paragraph.
DETAILED = 4


class CallbackModule(CallbackBase):
    """Times the roles as they pass, remembers failures, and prints at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "closing_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._stages = {}
        self._stage = None
        self._play = None
        self._failures = {}
        self._wanted = set()
        self._since = time.monotonic() - _process_age()
        # What came before Ansible, where the caller timed it (make does).
        seconds = os.environ.get("FIRSTLIGHT_CONTROLLER_SECONDS")
        if seconds:
            self._stages["controller"] = float(seconds)

    def v2_playbook_on_start(self, playbook):
        """The time until here is Ansible's own start."""
        self._close("ansible start")

    def v2_playbook_on_play_start(self, play):
        """Tasks outside roles are timed under the play's name."""
        self._play = play
        self._wanted.update(host.get_name() for host in hosts_of(play))

    def v2_playbook_on_task_start(self, task, is_conditional):
        """A task of another role begins another stage."""
        if isinstance(task, TaskInclude):
            return  # what it includes has a stage of its own
        stage = stage_of(task, self._play)
        if stage != self._stage:
            self._close(self._stage)
            self._stage = stage

    def v2_playbook_on_handler_task_start(self, task):
        """Handlers have roles too."""
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """Remember why, in case nothing rescues it."""
        if not ignore_errors:
            self._remember("failed", result)

    def v2_runner_on_unreachable(self, result):
        """Remember why."""
        self._remember("unreachable", result)

    def v2_playbook_on_stats(self, stats):
        """Print what there is to say."""
        self._close(self._stage)
        if is_one_document(C.DEFAULT_STDOUT_CALLBACK):
            return  # standard output is one document, and not ours
        hosts = {host: said for host, said in sorted(stats.custom.items()) if host != "_run"}
        lines = self._endpoints(hosts)
        for host, said in hosts.items():
            lines += self._removed(host, said)
        lines += self._failed(stats)
        if lines:
            lines += ["", "time      " + " · ".join(
                "%s %.1f s" % (name, seconds) for name, seconds in self._stages.items())]
            said = {key for one in hosts.values() for key in one}
            self._display.banner("FIRST LIGHT" if "firstlight_passports" in said
                                 else "LIGHTS OUT" if "firstlight_removed" in said else "NOT DONE")
            for line in lines:
                # Passports and messages come from hosts, and a terminal would obey them.
                self._display.display(plain(line))

    def _close(self, stage):
        now = time.monotonic()
        if stage:
            self._stages[stage] = self._stages.get(stage, 0.0) + now - self._since
        self._since = now

    def _remember(self, how, result):
        host = result.host.get_name()
        # Core takes a host out of the play unless its failure is rescued or ignored; of an include
        # it decides later. The first failure is the reason: what `always` and `rescue` do after it
        # may fail too.
        if host in self._play._removed_hosts or isinstance(result.task, TaskInclude):
            self._failures.setdefault(host, "%s in %s, task \"%s\": %s" % (
                how, stage_of(result.task, self._play), name_in(result),
                reason_of(result)))

    def _failed(self, stats):
        # A failure that was rescued is none in the statistics.
        failed = [host for host in sorted(stats.processed)
                  if stats.failures.get(host) or stats.dark.get(host)]
        lines = ["%s %s" % (host, self._failures.get(host, "failed")) for host in failed]
        lost = ",".join(host for host in failed if stats.dark.get(host))
        if lost:
            lines.append("What was under way on hosts that are unreachable ends or goes back by "
                         "itself. When ssh gets in, run again with --limit %s" % lost)
        if failed:
            # Core takes them out of the play too, where too many others failed.
            cut = ",".join(sorted(set(self._play._removed_hosts).difference(failed)))
            waiting = ",".join(sorted(self._wanted.difference(stats.processed)))
            for why, hosts in (
                    ("So many failed that the run ended in the middle of others.", cut),
                    ("The run ended before the turn of others: nothing was done there.", waiting)):
                if hosts:
                    lines.append("%s When it is mended, run again with --limit %s" % (why, hosts))
        return ["", "not done:", *("  " + line for line in lines)] if lines else []

    def _endpoints(self, hosts):
        """Every endpoint in full or in a line, by how many there are."""
        details, compact, unreadable = [], [], []
        for host, said in hosts.items():
            try:
                verdicts = {one["url"]: one for one in said.get("firstlight_verdicts", [])}
                mine = [(passport, verdicts.get(passport["plan"]["url"]))
                        for passport in said.get("firstlight_passports", [])]
                detailed = [line for one in mine for line in _paragraph(host, said, *one)]
                compact += [_row(host, *one) for one in mine]
                details += detailed
            except (AttributeError, KeyError, TypeError) as problem:
                # Passports come from hosts; one of another shape must not hide the others.
                unreadable += ["", "%s: its passports cannot be read (%r)" % (host, problem)]
        if len(compact) <= DETAILED:
            return details + unreadable
        # What is not proven comes last, where one looks first.
        compact.sort(key=lambda row: (row[1] != "proven", row))
        width = max(len(row[0]) for row in compact)
        return ["", *("%-*s  %-10s  %s" % (width, *row) for row in compact), *unreadable]

    def _removed(self, host, said):
        if "firstlight_removed" not in said:
            return []
        removed = said["firstlight_removed"]
        did = "would be removed" if said.get("firstlight_check_mode") else "removed"
        return ["", "%s on %s:" % (did, host)] + ["  " + one for one in removed or ["nothing"]]


def _standing(verdict):
    if verdict is None:
        return "not asked"
    return "proven" if verdict["passed"] else "NOT proven"


def _figures(passport, verdict):
    return verdict["figures"] if verdict else passport["smoke"]["figures"]


def _findings(verdict):
    return ["%-9s %s: found %s, wanted %s" % (
        one["severity"], one["id"], one["found"], one["wanted"])
        for one in (verdict or {}).get("findings", [])]


def _paragraph(host, said, passport, verdict):
    """An endpoint in full."""
    plan = passport["plan"]
    figures = _figures(passport, verdict)
    return [
        "",
        "%s on %s: %s" % (plan["name"], host, _standing(verdict)),
        "endpoint  %s" % _address(host, plan),
        *_way_in(passport),
        "engine    %s %s (%s)" % (plan["engine"], plan["engine_version"], plan["runtime"]),
        "model     %s (%s %s), context %d" % (
            plan["model"]["served_name"], plan["model"]["format"],
            plan["model"]["quantisation"], plan["context"]),
        "speed     %s tokens/s in one stream, first token after %s s" % (
            figures.get("tokens_per_second", "?"), figures.get("first_token_s", "?")),
        "engine up %s s after its start" % passport["phases"]["ready_s"],
        "passport  %s/endpoints/%s/passport.json" % (said["firstlight_root"], plan["name"]),
        "try       %s" % _curl(host, plan),
        *_findings(verdict),
    ]


def _row(host, passport, verdict):
    """An endpoint of many: its name, how it stands, and the rest."""
    plan = passport["plan"]
    rest = "%s  %s on %s %s  %s tokens/s" % (
        _address(host, plan), plan["model"]["served_name"], plan["engine"],
        plan["engine_version"], _figures(passport, verdict).get("tokens_per_second", "?"))
    found = _findings(verdict)
    if _standing(verdict) != "proven" and found:
        rest = "%s  %s" % (_address(host, plan), " ".join(found[0].split()))
    return "%s on %s" % (plan["name"], host), _standing(verdict), rest


def _process_age():
    """Seconds that this process has run: what Ansible needed before the first callback."""
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


# On these a service listens on every address; a client needs one.
EVERY_ADDRESS = ("://0.0.0.0:", "://[::]:")


def _address(host, plan):
    """Where clients reach it; what listens on every address is named after its host."""
    url = plan["public_url"]
    for every in EVERY_ADDRESS:
        url = url.replace(every, "://%s:" % host)
    return url


def _way_in(passport):
    """What a client of a way in needs to know."""
    plan, way_in = passport["plan"], passport["service"].get("way_in")
    if not way_in:
        return []
    return ["way in    one of its keys is needed; %s certificate, SHA-256 %s" % (
        "a self-signed" if plan["tls"] == "self-signed" else "the given", way_in["certificate"])]


def _curl(host, plan):
    """A request to try, quoted for a shell: names of models come from files."""
    oracle = plan.get("oracle")
    payload = {
        "model": plan["model"]["served_name"],
        "prompt": oracle["prompt"] if oracle else "Once upon a time",
        "max_tokens": 24,
        "temperature": 0,
    }
    said = shlex.join([
        "curl", "-s", *(["-k"] if plan["tls"] == "self-signed" else []),
        _address(host, plan) + "/v1/completions", "-H", "Content-Type: application/json",
        "-d", json.dumps(payload),
    ])
    # The key is the reader's: it is in a variable of theirs, and in no history of a shell.
    return said + (' -H "Authorization: Bearer $KEY"' if plan["way_in"] else "")
