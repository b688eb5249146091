#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: a virtual environment that holds exactly what a lock says."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: python_environment
short_description: Bring a virtual environment to what a hashed lock says
description:
  - Creates a virtual environment with the Python that runs this module, installs a lock into it
    with C(pip --require-hashes) from wheels only, removes what the lock does not name, and places
    scripts beside its programs.
  - An environment that is as wanted is recognised by one small file, which is written last, so
    one that was interrupted is finished by the next run.
options:
  path:
    description: Directory of the environment.
    type: path
    required: true
  lock:
    description: Text of a requirements file in which every line has hashes.
    type: str
    default: ""
  scripts:
    description: Texts of files to place in the environment's C(bin), by name.
    type: dict
    default: {}
  network_root:
    description:
      - C(firstlight_root), under which the role network_access left how this host goes out. pip
        gets it by its environment. Empty means that pip goes out by its own settings.
    type: path
    default: ""
  state:
    description: Whether it should be there.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says what would change and changes nothing.
    support: full
  diff_mode:
    description: Shows the lock and the scripts before and after.
    support: full
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Bring the toolbelt
  python_environment:
    path: /var/lib/firstlight/venvs/toolbelt
    lock: "{{ lookup('ansible.builtin.file', 'toolbelt.txt') }}"
"""

RETURN = r"""
path:
  description: The environment.
  returned: always
  type: str
elapsed_s:
  description: Seconds that bringing it took; 0 when nothing was to do.
  returned: always
  type: float
"""

import contextlib
import json
import os
import re
import shutil
import sys
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import network_settings, paths, python_venv
from ansible.module_utils.firstlight.python_venv import MARKER, observe, plan
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.transaction import Busy, Lock

PIP_SECONDS = 1800
# What a new environment comes with.
SEEDS = {"pip", "setuptools", "wheel"}


def apply(module, steps, path, wanted, found):
    """Take the steps; the marker comes last."""
    if not steps:
        return
    if "remove" in steps:
        shutil.rmtree(path)
        return
    marker = os.path.join(path, MARKER)
    if os.path.exists(marker):
        os.unlink(marker)
    if "create" in steps:
        # venv keeps the links of an earlier Python, dangling or not, unless told to start over.
        anew = [] if _python_of(path) in (None, wanted["python"]) else ["--clear"]
        _must(module, [sys.executable, "-I", "-m", "venv", *anew, path],
              "A virtual environment cannot be made with %s. On Debian and Ubuntu install "
              "python3-venv; check that %s can be written." % (sys.executable, path))
    if "install" in steps:
        _install(module, path, wanted["lock"])
    for name in set(found["scripts"] if found else ()) - set(wanted["scripts"]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, "bin", name))
    for name, text in wanted["scripts"].items():
        paths.write(os.path.join(path, "bin", name), text.encode(), mode=0o755)
    paths.write(marker, json.dumps(wanted).encode())


def _python_of(path):
    """The version of an environment's Python; None without one, empty when it does not run."""
    python = os.path.join(path, "bin", "python")
    if not os.path.lexists(python):
        return None
    return run([python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
               ).stdout.strip()


def _install(module, path, lock):
    """What the lock names, and nothing else but pip's own.

    A lock that cannot be installed leaves what was there, which something may be running from.
    """
    file = os.path.join(path, "requirements.txt")
    paths.write(file, lock.encode())
    _pip(module, path, ["install", "--quiet", "--no-input", "--require-hashes",
                        "--only-binary", ":all:", "--requirement", file],
         "pip could not install %s. Check the way to the package index (roles/network_access: "
         "network_access_pip_indexes, network_access_proxy, network_access_offline; or "
         "PIP_INDEX_URL and proxies of whoever runs this) and the free space." % file)
    listed = _pip(module, path, ["list", "--format=json"], "pip cannot list %s." % path)
    there = {_normal(one["name"]) for one in json.loads(listed)}
    named = {_normal(name) for name in re.findall(r"^\w[\w.-]*", lock, re.MULTILINE)}
    strangers = sorted(there - named - SEEDS)
    if strangers:
        _pip(module, path, ["uninstall", "--quiet", "--yes"] + strangers,
             "pip cannot remove what the lock does not name.")


def _normal(name):
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(module, path, argv, advice):
    # Nothing the caller's shell happens to set may change where packages are put or looked for;
    # to pip, a variable that is empty is not set.
    root = module.params["network_root"]
    env = {**(network_settings.read(root) if root else {}),
           "PIP_USER": "0", "PIP_TARGET": "", "PIP_PREFIX": "", "PIP_ROOT": ""}
    return _must(module, [os.path.join(path, "bin", "python"), "-I", "-m", "pip",
                          "--disable-pip-version-check"] + argv, advice, env)


def _must(module, argv, advice, env=None):
    ran = run(argv, timeout_s=PIP_SECONDS, env=env)
    if not ran.ok:
        module.fail_json(msg="%s\n%s" % (advice, ran.complaint()))
    return ran.stdout


def main():
    """Observe, plan, and unless in check mode apply."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "lock": {"type": "str", "default": ""},
            "scripts": {"type": "dict", "default": {}},
            "network_root": {"type": "path", "default": ""},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    params = module.params
    path = params["path"]
    wanted = None
    if params["state"] == "present":
        wanted = python_venv.wanted(params["lock"], params["scripts"])
    started = time.monotonic()
    try:
        found = observe(path)
        steps = plan(wanted, found, os.path.lexists(path))
        if "remove" in steps and not python_venv.is_ours(path):
            module.fail_json(msg="%s is not a virtual environment of ours (it has no %s), so it is "
                                 "not removed. Check `path`." % (path, MARKER))
        if steps and not module.check_mode:
            with Lock(python_venv.lock_path(path), wait_s=PIP_SECONDS) as lock:
                # Another run may have brought it while this one waited.
                found = observe(path)
                steps = plan(wanted, found, os.path.lexists(path))
                apply(module, steps, path, wanted, found)
                if wanted is None:
                    lock.forget()
    except Busy as problem:
        module.fail_json(msg="%s; nothing was changed. Run again when it has ended." % problem)
    except OSError as problem:
        module.fail_json(msg="%s: %s" % (
            problem.filename or path, problem.strerror or problem))
    result = {
        "changed": bool(steps),
        "path": path,
        "elapsed_s": round(time.monotonic() - started, 3) if steps else 0.0,
    }
    if module._diff and steps:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": _as_text(found),
            "after": _as_text(wanted),
        }
    module.exit_json(**result)


def _as_text(content):
    return "" if content is None else content["lock"] + "\n".join(sorted(content["scripts"])) + "\n"


if __name__ == "__main__":
    main()
