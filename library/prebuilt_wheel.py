#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: one prebuilt wheel in an environment, proved there, or all as it was."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: prebuilt_wheel
short_description: Bring a prebuilt wheel into a Python environment, and prove it
description:
  - Brings one wheel into the wheelhouse, reads it as a whole, and has pip install it without any
    dependency, index or cache. Then it imports the package in that environment and runs its
    kernel. When anything fails, the environment is put back byte for byte, and the module fails
    with the reason.
  - An environment in which these very files are installed and work is left as it is.
  - A run that is killed is put back by the next one about that environment, whichever package that
    is about.
options:
  root:
    description: C(firstlight_root) on this host.
    type: path
    required: true
  wheel:
    description:
      - The file, as C(prebuilt_wheel_info) returns candidates, C(sha256) included. A source
        distribution for O(state=built). Needed unless O(state=recovered).
    type: dict
    default: {}
  state:
    description:
      - V(fetched) brings it into the wheelhouse and no further. V(built) makes a wheel of a source
        distribution first, and keeps it in the wheelhouse. V(recovered) does no more than put back
        what an earlier run left half done.
    type: str
    choices: [fetched, installed, built, recovered]
    default: installed
  wheelhouse:
    description: Folder of wheels. Empty is C(wheels) under O(root).
    type: path
    default: ""
  python:
    description: Interpreter of the environment, absolute. Needed unless O(state=fetched).
    type: str
    default: ""
  row:
    description: The package's row, as in C(catalog/prebuilt_wheels.yml). Needed for
      O(state=installed) and O(state=built).
    type: dict
    default: {}
  probe_s:
    description: Seconds for each step of the proof, such as the imports or the kernel.
    type: float
    default: 180
  install_s:
    description: Seconds for pip.
    type: float
    default: 1800
  build:
    description: How it is built, as the filter C(wheel_build_decisions) says. Needed for
      O(state=built).
    type: dict
    default: {}
  build_limit_s:
    description: Seconds for the build.
    type: int
    default: 7200
attributes:
  check_mode:
    description:
      - Says what would change and changes nothing. A wheel that is not in the wheelhouse yet is not
        judged.
    support: full
  diff_mode:
    description: Shows the package's version before and after.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Bring flash-attn into the environment of nano
  prebuilt_wheel:
    root: /var/lib/firstlight
    python: /opt/nano/bin/python
    row: "{{ decision.request.row }}"
    wheel: "{{ decision.wheel }}"

- name: Fill the wheelhouse
  prebuilt_wheel:
    root: /var/lib/firstlight
    wheel: "{{ decision.wheel }}"
    state: fetched
"""

RETURN = r"""
file:
  description: The wheel's file name; of one that would be built, that of its source.
  returned: always
  type: str
version:
  description: The version that is installed now, or would be. Empty with O(state=fetched).
  returned: always
  type: str
replaced:
  description: The version that was there before; empty where there was none, or nothing changed.
  returned: always
  type: str
imports:
  description: What became of the imports. Empty where nothing was imported.
  returned: always
  type: dict
  contains:
    state:
      description: V(ok), V(failed), V(crashed) or V(slow).
      type: str
    why:
      description: Why it is not V(ok).
      type: str
    seconds:
      description: Seconds that they took.
      type: float
kernel:
  description: What became of the package's kernel. Empty where nothing was imported.
  returned: always
  type: dict
  contains:
    state:
      description: V(ran), V(failed), V(crashed), V(slow), V(skipped) or V(none).
      type: str
    why:
      description: Why it did not run, or what is wrong with it.
      type: str
    error:
      description: The largest deviation from a reference.
      type: float
    device:
      description: What it ran on.
      type: str
elapsed_s:
  description: Seconds that all of it took.
  returned: always
  type: float
rolled_back:
  description: Whether a change was put back, of this run that failed or of one that was killed.
  returned: always
  type: bool
findings:
  description: What there is to know; in a failure, why.
  returned: always
  type: list
  elements: dict
"""

import os
import re
import time
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import findings as said
from ansible.module_utils.firstlight import network_settings
from ansible.module_utils.firstlight.findings import finding
from ansible.module_utils.firstlight.transaction import Busy, RollbackFailed
from ansible.module_utils.firstlight.wheels import archive as archives
from ansible.module_utils.firstlight.wheels import build, environment, install
from ansible.module_utils.firstlight.wheels.house import House, HouseProblem
from ansible.module_utils.firstlight.wheels.installed import Stash

WAIT_S = 30.0
"""Seconds to wait for another run about the same environment."""
BUILT_BYTES = 2**29
"""Bytes for which the wheelhouse must have room before a build; flash-attn's has half of it."""


def observe(params, house):
    """The environment, and what is in the wheelhouse: ``{seen, there, made}``."""
    seen = None
    if params["state"] != "fetched":
        seen = environment.read(params["python"], [params["row"]], params["probe_s"])
    wanted, name = params["wheel"], params["wheel"]["file"]
    row = house.files().get(name)
    there = bool(row) and row["sha256"] == wanted["sha256"] and not house.check(name)
    made = params["state"] == "built" and house_made(params, house)
    return {"seen": seen, "there": there, "made": bool(made)}


def plan(params, found):
    """The steps that lead to what is wanted, and why there are none: ``(steps, findings)``.

    Whether ``install`` has anything to do is seen when the wheel is read.
    """
    if found["seen"]:
        refused = install.environment_findings(found["seen"], params["row"])
        if said.blocking(refused):
            return [], refused
        try:
            install.pip_for(params["root"], found["seen"])
        except install.Refused as problem:
            return [], problem.findings
    steps = [] if found["there"] or found["made"] else ["fetch"]
    if steps and not params["wheel"]["sha256"]:
        return [], [finding(
            "wheel-no-hash", params["wheel"]["file"], "no SHA-256 of it is known",
            "the SHA-256 of the file", "look it up where the file is published, and set it as "
            "`sha256` of the package in `prebuilt_wheel_packages`")]
    if params["state"] == "built" and not found["made"]:
        steps.append("build")
    return steps + ([] if params["state"] == "fetched" else ["install"]), []


def apply(params, house, steps, found, change, stash):
    """Take the steps; what is known of the result then.

    ``change`` is the change to the environment, entered, or None where it is left alone.
    """
    wheel, name = params["wheel"], params["wheel"]["file"]
    if "fetch" in steps:
        house.bring(wheel, env=network_settings.read(params["root"]),
                    pythons=[params["python"]] if params["python"] else [])
    result = {"file": name, "changed": "fetch" in steps}
    if "install" not in steps:
        return result
    pip = install.pip_for(params["root"], found["seen"])
    sha256 = wheel["sha256"]
    if params["state"] == "built":
        if "build" in steps:
            make(params, house, pip)
            result["changed"] = True
        name = house_made(params, house)
        sha256 = house.files()[name]["sha256"]
    judged = judge(params, house.path(name), name, sha256, pip, found["seen"])
    result.update(file=name, **judged.result)
    if judged.due:
        result["changed"] = True
        result["imports"], result["kernel"] = install.put_in(
            change, stash, pip, judged.archive, house.path(name), sha256, judged.judged,
            params["row"], params["python"], params["probe_s"], params["install_s"])
    return result


def preview(params, house, steps, found):
    """What :func:`apply` would do, with nothing changed."""
    name, there = params["wheel"]["file"], None
    if set(steps) & {"fetch", "build"} or "install" not in steps:
        result = {"file": name, "changed": bool(steps)}
        if "install" in steps:
            there = found["seen"]["installed"].get(params["row"]["package"])
            # It cannot be read yet, so its name has to do.
            result.update(version=version_told(name),
                          replaced=there["version"] if there else "")
        return result
    pip = install.pip_for(params["root"], found["seen"])
    sha256 = params["wheel"]["sha256"]
    if params["state"] == "built":
        name = house_made(params, house)
        sha256 = house.files()[name]["sha256"]
    judged = judge(params, house.path(name), name, sha256, pip, found["seen"])
    return {"file": name, "changed": judged.due, **judged.result}


def version_told(name):
    """The version that a file's name tells; empty where it tells none."""
    if name.endswith(".whl"):
        return (name.split("-") + [""])[1]
    # Names of source distributions may have hyphens of their own; versions have none.
    return re.sub(r"\.(tar\.gz|zip)$", "", name).rpartition("-")[2]


class Judgement(NamedTuple):
    """A wheel that may be installed, whether it has to be, and what is known of the result."""

    archive: Any
    judged: Any
    due: bool
    result: dict


def judge(params, path, name, sha256, pip, seen):
    """Read the wheel, and see whether the environment takes it and has it already."""
    archive, wrong = archives.judge(path, name, sha256)
    if archive is None:
        raise install.Refused(wrong)
    judged = install.judge(archive, seen, params["row"], pip)
    there = seen["installed"].get(params["row"]["package"])
    due = not (judged.same and install.works(there))
    result = {"version": archive.version, "findings": judged.findings}
    if due:
        result["replaced"] = judged.replaces
    else:
        result.update(imports=there["imports"], kernel=there["kernel"])
    return Judgement(archive, judged, due, result)


def made_from(params):
    """What the wheelhouse says of a wheel that was built here: of which bytes, too."""
    # Shorter than what the wheelhouse keeps of it.
    return "built here from %s (SHA-256 %s)" % (
        params["wheel"]["file"][:100], params["wheel"]["sha256"])


def house_made(params, house):
    """The name of the wheel that was built of this very source for such an environment, if any."""
    for name, row in sorted(house.files().items()):
        if row["source"] == made_from(params) and not house.check(name) \
                and row["built_for"] == params["build"].get("built_for", {}):
            return name
    return ""


def make(params, house, pip):
    """Build a wheel of a source distribution, and keep it in the wheelhouse."""
    how = {**params["build"], "limit_s": params["build_limit_s"]}
    into = os.path.join(params["root"], "cache", "wheel-builds")
    house.ready(params["wheel"]["file"], BUILT_BYTES)
    path = build.build(
        params["python"], house.path(params["wheel"]["file"]), how, into,
        os.path.join(into, "%s.log" % params["row"]["package"]),
        pip=os.path.join(pip.folder, "pip") if pip.folder else "")
    try:
        house.add(path, os.path.basename(path), source=made_from(params),
                  built_for=how["built_for"])
    finally:
        os.unlink(path)


def checked(params, house, stash):
    """What a run would do."""
    if params["state"] != "fetched":
        change = stash.change(journal(params), 0.0)
        if change.under_way:
            raise Busy("another run is at work in it")
        if change.half_done:
            # What is there now is not what a run would find.
            return {"changed": True, "findings": [half_done(
                params, "would be put back first; what is to do then cannot be seen before")]}
        if params["state"] == "recovered":
            return {"changed": False}
    found, steps = seen_and_planned(params, house)
    return preview(params, house, steps, found)


def seen_and_planned(params, house):
    """What there is and the steps from there: ``(found, steps)``; raises what is in the way."""
    found = observe(params, house)
    steps, refused = plan(params, found)
    if refused:
        raise install.Refused(refused)
    return found, steps


def changed(params, house, stash):
    """Do it."""
    if params["state"] == "fetched":
        found, steps = seen_and_planned(params, house)
        return apply(params, house, steps, found, None, stash)
    try:
        with stash.change(journal(params), WAIT_S) as change:
            stash.clear()
            result = {"changed": False}
            if params["state"] != "recovered":
                found, steps = seen_and_planned(params, house)
                result = apply(params, house, steps, found, change, stash)
    finally:
        stash.forget()
    if change.recovered:
        result.update(changed=True, findings=result.get("findings", []) + [half_done(
            params, "was put back before anything else")])
    return result


def half_done(params, what):
    """That an earlier run was killed."""
    return finding(
        "wheel-half-done", params["python"], "a change that an earlier run left half done %s"
        % what, "changes that are made or put back", "nothing; see in the kernel's log whether "
        "something ran out of memory", severity="info")


def journal(params):
    """The folder of locks and journals."""
    return os.path.join(params["root"], "journal")


def difference(result, row):
    """The package before and after, for --diff."""
    package = row.get("package", "")
    before = "%s %s\n" % (package, result["replaced"]) if result["replaced"] else ""
    if not result["version"]:
        return {"before": "", "after": "%s\n" % result["file"]}
    return {"before": before, "after": "%s %s (%s)\n" % (package, result["version"],
                                                         result["file"])}


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "wheel": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["fetched", "installed", "built", "recovered"],
                      "default": "installed"},
            "wheelhouse": {"type": "path", "default": ""},
            "python": {"type": "str", "default": ""},
            "row": {"type": "dict", "default": {}},
            "probe_s": {"type": "float", "default": 180},
            "install_s": {"type": "float", "default": 1800},
            "build": {"type": "dict", "default": {}},
            "build_limit_s": {"type": "int", "default": 7200},
        },
        required_if=[("state", "fetched", ("wheel",)),
                     ("state", "installed", ("wheel", "python", "row")),
                     ("state", "built", ("wheel", "python", "row", "build")),
                     ("state", "recovered", ("python",))],
        supports_check_mode=True,
    )
    params = module.params
    started = time.monotonic()
    house = House(params["wheelhouse"] or os.path.join(params["root"], "wheels"))
    stash = Stash(params["root"], params["python"])
    told = {"file": params["wheel"].get("file", ""), "version": "", "replaced": "", "imports": {},
            "kernel": {}, "findings": []}
    try:
        result = (checked if module.check_mode else changed)(params, house, stash)
    except (install.Refused, HouseProblem, build.BuildFailed) as refused:
        fail(module, told, stash, started, refused.findings)
    except Busy as busy:
        fail(module, told, stash, started, [finding(
            "wheel-busy", params["python"], str(busy), "one change to an environment at a time",
            "run again when that run has ended")])
    except RollbackFailed as problem:
        fail(module, told, stash, started, [finding(
            "wheel-not-put-back", params["python"], str(problem), "the environment as it was",
            "see to what it names (a full disk, a file system that went read-only), and run again: "
            "the next run tries again before it does anything else", severity="fatal")])
    except OSError as problem:
        fail(module, told, stash, started, [finding(
            "wheel-disk", problem.filename or params["root"], problem.strerror or str(problem),
            "a file system that can be read and written", "see to that path, and run again")])
    result = {**told, **result, "rolled_back": stash.was_put_back,
              "elapsed_s": round(time.monotonic() - started, 3)}
    if module._diff and result["changed"]:
        result["diff"] = difference(result, params["row"])
    module.exit_json(**result)


def fail(module, told, stash, started, findings):
    """Fail with the reasons."""
    module.fail_json(msg=said.text(findings), **{
        **told, "findings": findings, "rolled_back": stash.was_put_back,
        "elapsed_s": round(time.monotonic() - started, 3)})


if __name__ == "__main__":
    main()
