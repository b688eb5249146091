# SPDX-License-Identifier: Apache-2.0
"""The report on a fleet, made at the end of a run."""

from __future__ import annotations

import os
import time
import uuid

import ansible.module_utils
from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.playbook.block import Block
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar

# Core looks into our module_utils for modules only.
ansible.module_utils.__path__.append(
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "module_utils"))

from ansible.module_utils.firstlight import fleet_pages, passport
from ansible.module_utils.firstlight.task_results import (
    hosts_of,
    is_one_document,
    name_in,
    plain,
    reason_of,
    stage_of,
)

DOCUMENTATION = """
name: fleet_report
type: aggregate
short_description: Makes the report on a fleet at the end of a run
description:
  - At the end of a run whose plays have the role C(host_report) it writes down what became of each
    host, those included that failed or were not reached, and makes C(index.html), C(report.md) and
    C(report.json) in C(host_report_directory). Then it prints where the report is.
  - Writes nothing for another playbook, for a run whose tags leave the role out, and in check mode.
  - A folder that cannot be written is a warning, and fails no run.
requirements:
  - Enable in configuration (C(callbacks_enabled)).
"""

ACTION, ROLE, DIRECTORY = "host_record", "host_report", "host_report_directory"


class CallbackModule(CallbackBase):
    """Notes what each host does, and writes it down at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "fleet_report"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super().__init__()
        self._id = uuid.uuid4().hex
        self._started = passport.now()
        self._playbook = ""
        self._play = None
        self._reports = False  # the play has the role
        self._task = None  # the role's own, for its defaults
        self._wanted = {}  # hosts of plays with the role, and where their reports lie
        self._since = {}
        self._seconds = {}
        self._failures = {}
        self._recorded = {}

    def v2_playbook_on_start(self, playbook):
        """What is run."""
        self._playbook = os.path.basename(playbook._file_name)

    def v2_playbook_on_play_start(self, play):
        """A play without the role is none of ours."""
        self._play = play
        found = _recording(play)
        self._reports = found is not None
        if self._reports:
            self._task = found if _keeps(found) else None
            for host in hosts_of(play):
                if host.get_name() not in self._wanted:
                    self._wanted[host.get_name()] = (host, play, self._task)

    def v2_runner_on_start(self, host, task):
        """A host begins a task."""
        if self._reports and not isinstance(task, TaskInclude):
            self._since[host.get_name()] = time.monotonic()

    def v2_runner_on_ok(self, result):
        """A host is through with a task, which may be the one that keeps its result."""
        self._through(result)
        if self._reports and _keeps(result.task):
            directory = result.result.get("directory")
            if directory:
                self._recorded[result.host.get_name()] = str(directory)

    def v2_runner_on_skipped(self, result):
        """A skipped task takes time too."""
        self._through(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """Remember why, in case nothing rescues it."""
        self._through(result)
        if not ignore_errors:
            self._remember(result)

    def v2_runner_on_unreachable(self, result):
        """Remember why."""
        self._through(result)
        self._remember(result)

    def v2_playbook_on_stats(self, stats):
        """Write down what there is to tell, and say where it is."""
        if not self._wanted or not stats.processed or context.CLIARGS.get("check"):
            return
        folders = {}
        for host in self._wanted:
            folders.setdefault(self._directory(host), {})[host] = self._entry(host, stats)
        run = {"id": self._id, "playbook": self._playbook, "started": self._started,
               "ended": passport.now()}
        for directory, entries in folders.items():
            try:
                report = fleet_pages.keep_run(directory, run, entries)
            except fleet_pages.Unwritable as problem:
                self._display.warning(str(problem))
                continue
            for one in report["unread"]:
                self._display.warning(plain("%s: it is left out of the report" % one))
            if not is_one_document(C.DEFAULT_STDOUT_CALLBACK):
                self._display.display("report    %s" % plain(_near(
                    os.path.join(directory, fleet_pages.PAGES[0]))))

    def _through(self, result):
        since = self._since.pop(result.host.get_name(), None)
        if since is not None and not isinstance(result.task, TaskInclude):
            stages = self._seconds.setdefault(result.host.get_name(), {})
            stage = stage_of(result.task, self._play)
            stages[stage] = stages.get(stage, 0.0) + time.monotonic() - since

    def _remember(self, result):
        host = result.host.get_name()
        # Core takes a host out of the play unless its failure is rescued or ignored; of an include
        # it decides later. The first failure is the reason.
        if self._reports and (
                host in self._play._removed_hosts or isinstance(result.task, TaskInclude)):
            self._failures.setdefault(host, {
                "stage": stage_of(result.task, self._play), "task": name_in(result),
                "reason": reason_of(result, whole=True)})

    def _entry(self, host, stats):
        """What became of a host."""
        state = ("waiting" if host not in stats.processed
                 else "unreachable" if stats.dark.get(host)
                 else "failed" if stats.failures.get(host)
                 else "ended" if host not in self._recorded
                 else "changed" if stats.changed.get(host) else "ok")
        reason = {"stage": "", "task": "", "reason": ""}
        if state in ("failed", "unreachable"):
            reason.update(self._failures.get(host, {}))
        return {"state": state, "recorded": host in self._recorded, **reason, "stages": [
            {"name": name, "seconds": round(seconds, 3)}
            for name, seconds in self._seconds.get(host, {}).items()]}

    def _directory(self, name):
        """Where the report on a host lies: where its result was kept, else where it would be."""
        if name in self._recorded:
            return self._recorded[name]
        host, play, task = self._wanted[name]
        try:
            variables = play.get_variable_manager().get_vars(play=play, host=host, task=task)
            asked = Templar(loader=play.get_loader(), variables=variables).template(
                variables[DIRECTORY])
            return os.path.abspath(os.path.expanduser(str(asked)))
        except (AnsibleError, KeyError):
            beside = next(iter(self._recorded.values()), None)
            return beside or os.path.join(os.path.dirname(C.CONFIG_FILE or os.getcwd()), "reports")


def _recording(play):
    """The task of a play that keeps results, or that includes the role which does; or nothing."""
    for task in (task for block in play.compile() for task in _tasks(block)):
        ours = _keeps(task) or os.path.basename(getattr(task, "_role_name", None) or "") == ROLE
        if ours and task.evaluate_tags(play.only_tags, play.skip_tags, {}):
            return task
    return None


def _keeps(task):
    """Whether it is the task that keeps the result of a host."""
    return task.action == ACTION and task.args.get("state", "recorded") == "recorded"


def _tasks(node):
    if not isinstance(node, Block):
        return [node]
    return [task for inner in (*node.block, *node.rescue, *node.always) for task in _tasks(inner)]


def _near(path):
    """A path as it is shortest from here."""
    here = os.path.relpath(path)
    return path if here.startswith("..") else here
