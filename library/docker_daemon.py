#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: Docker's daemon as it is, and its settings merged, proven or put back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: docker_daemon
short_description: Read Docker's daemon, and merge settings into its file, proven or put back
description:
  - Reads whether the daemon answers, what runs it, what it can give to containers, and the files of
    the Container Device Interface.
  - Merges O(needs) and O(defaults) into the daemon's own settings file (C(daemon.json), or what its
    command line names). What is there of others stays. The result is held against
    C(dockerd --validate), where that is there, and written in one transaction.
  - The daemon follows by SIGHUP where it reads all that changed again, else by a restart of its
    unit. A restart that would stop containers is done with O(consent) or where the daemon keeps
    them running (live-restore); else defaults are postponed, and needs fail.
  - Where the daemon does not come back, or does not have what is needed, the old file and the old
    daemon are put back, containers that ran are started again, and the module fails with what the
    daemon said. A run that was killed is put back by the next one.
options:
  root:
    description: C(firstlight_root) on this host; empty means the default of the user.
    type: path
    default: ""
  needs:
    description: Settings that must hold, whatever the file has; mappings are merged one level deep.
    type: dict
    default: {}
  defaults:
    description: Settings for what the file says nothing of. They never keep a run from going on.
    type: dict
    default: {}
  consent:
    description: Whether containers that run may be stopped by a restart, and started again.
    type: bool
    default: false
  images:
    description: Names of images that are looked for.
    type: list
    elements: str
    default: []
  timeout_s:
    description: Seconds within which the daemon must be back.
    type: int
    default: 90
attributes:
  check_mode:
    description: Says what it would do and changes nothing; a daemon that is not there is no error.
    support: full
  diff_mode:
    description: Shows the values that change, and nothing else of the file, which may hold secrets.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Have limits for the logs of containers, and CDI
  docker_daemon:
    needs:
      features: {cdi: true}
    defaults:
      log-driver: json-file
      log-opts: {max-size: 10m, max-file: "3"}
  register: __docker
"""

RETURN = r"""
state:
  description:
    - C(running), C(refused) (this user may not ask it), C(stopped) or C(absent).
  returned: success
  type: str
why:
  description: What was said where it is not C(running), else empty.
  returned: success
  type: str
root:
  description: Whether the module ran as root.
  returned: success
  type: bool
systemd:
  description: Whether systemd runs this host.
  returned: success
  type: bool
program:
  description: Path of dockerd; empty where it is not installed.
  returned: success
  type: str
unit:
  description: The unit of systemd that runs the daemon; empty where none does.
  returned: success
  type: str
file:
  description: The daemon's settings file.
  returned: success
  type: str
engine:
  description: What the daemon says of itself; C(null) where it does not answer.
  returned: success
  type: dict
  contains:
    version:
      description: Its version.
      type: str
    api_version:
      description: Version of its API.
      type: str
    cgroup_driver:
      description: C(systemd) or C(cgroupfs).
      type: str
    cgroup_version:
      description: C(1) or C(2).
      type: str
    cdi:
      description: Whether it gives devices by the Container Device Interface.
      type: bool
    cdi_devices:
      description: The names of devices that it knows by that.
      type: list
      elements: str
    nvidia_runtime:
      description: Whether the runtime C(nvidia) is registered.
      type: bool
    live_restore:
      description: Whether containers outlive a restart of it.
      type: bool
    proxies:
      description: >-
        C(http-proxy), C(https-proxy) and C(no-proxy) that it pulls by, without logins; each may be
        empty.
      type: dict
    log_driver:
      description: What the logs of containers go to.
      type: str
    nofile_max:
      description: Open files that a container can be given at most.
      type: int
    memlock_unlimited:
      description: Whether a container can be given unlimited locked memory.
      type: bool
    device_nodes:
      description: The driver's device nodes, by UUID.
      type: dict
running:
  description: Names of the containers that run.
  returned: success
  type: list
  elements: str
nvidia:
  description: What there is for containers with NVIDIA GPUs.
  returned: success
  type: dict
  contains:
    ctk:
      description: Path of nvidia-ctk, or empty.
      type: str
    runtime:
      description: Path of nvidia-container-runtime, or empty.
      type: str
    hook:
      description: Path of nvidia-container-runtime-hook, or empty.
      type: str
    refresh:
      description: Whether the toolkit's service writes the specification.
      type: bool
    devices:
      description: Devices in specifications by name, each with C(file), C(nodes) and C(gone).
      type: dict
    unreadable:
      description: Specifications that could not be understood.
      type: list
      elements: str
    nodes:
      description: The driver's device node of each card, by UUID.
      type: dict
images:
  description: The id of each of O(images); C(null) where it is not there.
  returned: success
  type: dict
changes:
  description: What was changed in the file, or would be, one line each.
  returned: success
  type: list
  elements: str
postponed:
  description: What was left for now and why, one line each.
  returned: success
  type: list
  elements: str
how:
  description:
    - How the daemon follows - C(reload), C(restart), C(write) (it does not run) or empty.
  returned: success
  type: str
restarted:
  description: Whether the daemon was started again.
  returned: success
  type: bool
started_again:
  description: Containers that ran before the restart and had to be started after it.
  returned: success
  type: list
  elements: str
recovered:
  description: Whether an earlier change was found half done and put back first.
  returned: success
  type: bool
findings:
  description: Why what is needed cannot be had, when that is why the module failed.
  returned: when it is refused
  type: list
  elements: dict
"""

import contextlib
import os
import stat
import tempfile
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import docker_steps, paths
from ansible.module_utils.firstlight.docker_api import Api, Away, Refused, quoted
from ansible.module_utils.firstlight.docker_steps import TOLD, NotChanged
from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.host import docker_engine
from ansible.module_utils.firstlight.host.reading import Reader
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed, Transaction

SYSTEM_ROOT = "/"
JOURNAL = "docker_daemon"
# A daemon reads its file at once; what it makes of it is seen within this time.
RELOAD_S = 15
POLL_S = 0.2
WORDS = 12
# What an older dockerd says to --validate.
NO_VALIDATE = "unknown flag"


class Daemon:
    """The daemon of this host, as this module reads and changes it."""

    def __init__(self, params, system_root):
        self.params = params
        self.root = paths.root(params["root"])
        self.reader = Reader(system_root)
        self.restarted = False
        self.before, self.unit = [], ""

    def observe(self):
        """What is there, and the decision on it."""
        return docker_steps.observe(self.reader, self.params)

    def transaction(self):
        """The change of the file; what hangs on it follows when it is put back."""
        return Transaction(os.path.join(self.root, "journal"), JOURNAL, self.put_back)

    def put_back(self):
        """Have the daemon follow the file that was put back."""
        process = docker_engine.daemon(self.reader)
        if self.restarted or not docker_engine.answers():
            unit = self.unit or process["unit"] or docker_engine.usual_unit()
            if unit:
                self.restart(unit)
                self.await_answer(self.params["timeout_s"])
                self.start_again()
        elif process["pid"]:
            docker_engine.reload(process["pid"])

    def restart(self, unit):
        """Start the daemon's unit again. Whether it came up, its socket says.

        A unit that failed a few times in a row systemd would not start once more.
        """
        run(["systemctl", "reset-failed", unit])
        return run(["systemctl", "restart", unit], timeout_s=self.params["timeout_s"])

    def await_answer(self, seconds):
        """:raises Away: it does not answer within this time."""
        deadline = time.monotonic() + seconds
        while not docker_engine.answers():
            if time.monotonic() > deadline:
                raise Away("dockerd does not answer within %g s" % seconds)
            time.sleep(POLL_S)

    def start_again(self):
        """Start the containers that ran before and do not now; those with a policy come alone."""
        api, started = Api(), []
        for name in self.before:
            # One that was made with --rm is gone.
            with contextlib.suppress(Refused):
                state = api.get("/containers/%s/json" % quoted(name))["State"]
                if not (state.get("Running") or state.get("Restarting")):
                    api.post("/containers/%s/start" % quoted(name))
                    started.append(name)
        return started


def apply(daemon, images):
    """Write, have the daemon follow, prove; everything is put back when one of it fails."""
    with daemon.transaction() as change:
        # Only now is it sure that nothing is half done, by an earlier run or by one beside us.
        steps = daemon.observe()
        _must_not_be_refused(steps)
        how, started = steps.decided.how, []
        if how:
            content = docker_engine.written(steps.merged, steps.content)
            _validate(steps, content)
            mode = stat.S_IMODE(os.stat(steps.path).st_mode) if steps.content is not None else 0o644
            change.write(steps.path, content, mode)
            daemon.before, daemon.unit = steps.seen["running"], steps.seen["unit"]
        if how == "reload":
            docker_engine.reload(steps.seen["pid"])
            _prove(daemon, steps, RELOAD_S)
        if how == "restart":
            daemon.restarted = True
            since = int(time.time())
            ran = daemon.restart(steps.seen["unit"])
            try:
                if not ran.ok:
                    raise Away(ran.complaint())
                daemon.await_answer(daemon.params["timeout_s"])
            except Away as problem:
                raise NotChanged([_not_back(steps, problem, since)]) from problem
            _prove(daemon, steps, RELOAD_S)
            started = daemon.start_again()
    # What is told is how it is now.
    return steps, docker_engine.observe(daemon.reader, images), started, change.recovered


def _must_not_be_refused(steps):
    if steps.decided.refusals:
        raise NotChanged(steps.decided.refusals)


def _validate(steps, content):
    """Have dockerd judge the file before anything is touched, where it can.

    :raises NotChanged: it would not start with it.
    """
    if not steps.seen["program"]:
        return
    with tempfile.NamedTemporaryFile(prefix="daemon-", suffix=".json") as aside:
        aside.write(content)
        aside.flush()
        ran = run([steps.seen["program"], "--validate", "--config-file", aside.name], timeout_s=30)
    if ran.ok or NO_VALIDATE in ran.stderr:
        return
    raise NotChanged([finding(
        "docker-settings-refused", steps.seen["file"],
        "dockerd would not start with %s: %s" % (
            ", ".join(one.key for one in steps.decided.changes), ran.complaint()[-600:]),
        "settings that dockerd takes", "change container_runtime_defaults, or the file itself; "
        "nothing was touched", needs_root=True)])


def _prove(daemon, steps, seconds):
    """The daemon has what is needed.

    :raises NotChanged: it does not within this time.
    """
    needs = daemon.params["needs"]
    cdi = (needs.get("features") or {}).get("cdi")
    runtime = "nvidia" in (needs.get("runtimes") or {})
    deadline = time.monotonic() + seconds
    while True:
        engine = docker_engine.observe(daemon.reader)["engine"]
        if engine and (not cdi or engine["cdi"]) and (not runtime or engine["nvidia_runtime"]):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    missing = "CDI" if cdi and engine and not engine["cdi"] else (
        "the runtime nvidia" if engine else "an answer")
    raise NotChanged([finding(
        "docker-lacks-setting", "dockerd", "it follows its settings file, and has not %s" % missing,
        "; ".join(steps.lines()), "look at what it says (journalctl -u %s); the old file and the "
        "old daemon are back" % (steps.seen["unit"] or "docker"), needs_root=True)])


def _not_back(steps, problem, since):
    """The finding, with the daemon's own last words."""
    unit = steps.seen["unit"]
    ran = run(["journalctl", "--unit", unit, "--since", "@%d" % since, "--output", "cat",
               "--lines", "200"])
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    dying = [line for line in lines if "failed to start" in line or "level=fatal" in line
             or line.startswith("unable to") or "nvalid" in line]
    return finding(
        "docker-not-back", unit,
        "dockerd does not start with %s: %s" % (
            ", ".join(one.key for one in steps.decided.changes),
            (dying or lines or [str(problem)])[0]),
        "a daemon that comes back", "change the settings; the old file and the old daemon are back",
        evidence="\n".join(dict.fromkeys(dying or lines[-WORDS:])), needs_root=True)


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": ""},
            "needs": {"type": "dict", "default": {}},
            "defaults": {"type": "dict", "default": {}},
            "consent": {"type": "bool", "default": False},
            "images": {"type": "list", "elements": "str", "default": []},
            "timeout_s": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    daemon = Daemon(module.params, SYSTEM_ROOT)
    told = {}
    try:
        result = _run(module, daemon)
    except Busy as problem:
        said = "%s; nothing was changed. Run again when it has ended." % problem
    except RollbackFailed as problem:
        said = str(problem)
    except NotChanged as problem:
        said, told = str(problem), {"findings": problem.findings}
    except (Away, Refused) as problem:
        said = "Docker: %s. The settings are as they were." % problem
    except OSError as problem:
        said = "%s: %s. Everything is as it was before." % (
            problem.filename or daemon.root, problem.strerror or problem)
    else:
        module.exit_json(**result)
    module.fail_json(msg=said, **told)


def _run(module, daemon):
    steps = daemon.observe()
    _must_not_be_refused(steps)
    changes = bool(steps.decided.how)
    result = {"changed": changes, "changes": steps.lines(), "postponed": steps.decided.postponed,
              "how": steps.decided.how, "restarted": False, "started_again": [],
              "recovered": False}
    if module._diff and changes:
        result["diff"] = steps.difference()
    seen = steps.seen
    half_done = daemon.transaction().half_done
    if (changes or half_done) and not module.check_mode:
        done, seen, result["started_again"], result["recovered"] = apply(
            daemon, module.params["images"])
        result["how"], result["changes"] = done.decided.how, done.lines()
        result["postponed"] = done.decided.postponed
        result["restarted"] = daemon.restarted
        result["changed"] = bool(done.decided.how) or result["recovered"]
    return {**result, **{key: seen[key] for key in TOLD}}


if __name__ == "__main__":
    main()
