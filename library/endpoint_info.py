#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: the state of our endpoints on a host, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: endpoint_info
short_description: Read the state of all endpoints on a host
description:
  - Reads, in one call, what serves on this host - services, processes, passports and health of
    our endpoints - and who holds the ports that are asked about.
options:
  root:
    description: C(firstlight_root). Empty means the default of this user.
    type: path
    default: ""
  ports:
    description: TCP ports whose holders are wanted.
    type: list
    elements: int
    default: []
  libraries:
    description: Shared libraries, by soname, that an engine will need.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Reads only, so it does in check mode what it always does.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
author:
  - Firstlight contributors
"""

EXAMPLES = r"""
- name: Read what serves on this host
  endpoint_info:
    ports: [8000]
    libraries: [libgomp.so.1]
  register: __endpoints
"""

RETURN = r"""
root:
  description: C(firstlight_root) as it holds on this host.
  returned: always
  type: str
strangers:
  description: Names directly under the root that are not ours.
  returned: always
  type: list
  elements: str
environments:
  description: Names of our virtual environments under C(venvs), unfinished ones included.
  returned: always
  type: list
  elements: str
caches:
  description: Names under C(cache), where engines keep what they compiled.
  returned: always
  type: list
  elements: str
manager:
  description: C(systemd) or C(supervisor), whichever keeps native engines running here.
  returned: always
  type: str
uid:
  description: Whom the modules run as.
  returned: always
  type: int
endpoints:
  description:
    - Our endpoints by name. C(state) is C(absent), C(stopped), C(starting), C(running) or
      C(failed); C(pids) are all its processes, whatever started them; C(plan) is the hash of the
      plan that the running process was started with; C(healthy) is whether C(/health) answered
      200; C(passport) is the passport or C(null).
  returned: always
  type: dict
  sample:
    demo: {name: demo, state: running, pid: 4711, pids: [4711], plan: 9f2c, healthy: true,
           strays: [], passport: {}}
ports:
  description: Holders of the ports asked about; a free port is left out.
  returned: always
  type: dict
  sample:
    "8000": {pid: 812, command: nginx -g daemon off, user: www-data, endpoint: null, root: null}
python:
  description: The Python that runs the modules, and whether it can make environments.
  returned: always
  type: dict
  sample: {version: 3.11.2, venv: true}
missing_libraries:
  description: Those of C(libraries) that the loader does not find.
  returned: always
  type: list
  elements: str
"""

import ctypes
import importlib.util
import os
import platform
import re

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import passport, paths, processes, python_venv, services
from ansible.module_utils.firstlight.http_client import get

# What lies directly under a root of ours; the last is a file system's own.
OURS = {*paths.FOLDERS, "lost+found"}
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# The journal of a switch that was ended in the middle.
HALF_DONE = re.compile(r"endpoint-([a-z0-9][a-z0-9-]*)\.json")


def observe(root, ports, libraries):
    """The whole answer, as one dict."""
    kind = services.kind_for_this_host()
    manager = services.manager(kind, root)
    running = processes.engines(root)
    on_disk = [name for name in _listed(os.path.join(root, "endpoints")) if NAME.fullmatch(name)]
    on_disk += [match.group(1) for match in map(HALF_DONE.fullmatch, _listed(
        os.path.join(root, "journal"))) if match]
    endpoints = {
        name: _endpoint(root, name, manager.status(name), running.get(name, []))
        for name in sorted(set(on_disk) | set(running))
    }
    return {
        "root": root,
        "strangers": sorted(set(_listed(root)) - OURS),
        "environments": [name for name in sorted(_listed(os.path.join(root, "venvs")))
                         if python_venv.is_ours(os.path.join(root, "venvs", name))],
        "caches": sorted(_listed(os.path.join(root, "cache"))),
        "manager": kind,
        "uid": os.geteuid(),
        "endpoints": endpoints,
        "ports": {str(port): who for port, who in processes.holders(ports).items()},
        "python": {
            "version": platform.python_version(),
            "venv": importlib.util.find_spec("ensurepip") is not None,
        },
        "missing_libraries": [name for name in libraries if not _loads(name)],
    }


def _endpoint(root, name, status, running):
    found = passport.read(root, name)
    managed = [one for one in running if one["pid"] == status["pid"]]
    url = found["plan"]["url"] if found else None
    return {
        "name": name,
        "state": status["state"],
        "pid": status["pid"],
        "plan": managed[0]["plan"] if managed else None,
        "healthy": bool(url and managed and get(url + "/health", timeout_s=5).status == 200),
        "pids": sorted(one["pid"] for one in running),
        "strays": [] if managed else [one["pid"] for one in running],
        "passport": found,
    }


def _listed(folder):
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _loads(soname):
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def main():
    """Read; nothing is ever changed."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": ""},
            "ports": {"type": "list", "elements": "int", "default": []},
            "libraries": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = observe(paths.root(params["root"]), params["ports"], params["libraries"])
    except services.ServiceError as problem:
        module.fail_json(msg="The service manager cannot be read: %s" % problem)
    except OSError as problem:
        module.fail_json(msg="%s: %s" % (problem.filename, problem.strerror))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
