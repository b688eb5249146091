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
      C(failed), C(detail) what its service manager says of that, C(restarts) how often that
      started it again since it was told to start it; C(pids) are all its processes,
      whatever started them; C(plan) is the hash of the plan that the running process was started
      with; C(healthy) is whether C(/health) answered 200; C(passport) is the passport or C(null).
    - C(manager) is what keeps it running and C(definition) the SHA-256 of its definition, or
      C(null). C(older) is how many older passports there are to go
      back to. C(half_done) is whether a switch of it was ended in the middle, or is under way.
      C(log) are the last lines of an engine that failed, C(way_in) is what the proxy before it is
      made of, in short (the filter C(way_in_digests) says what it should be), and C(gpus_seen) are
      the GPUs that a container of ours sees now, or C(null).
  returned: always
  type: dict
  sample:
    demo: {name: demo, state: running, detail: "", restarts: 0, older: 0,
           pid: 4711, pids: [4711], plan: 9f2c, healthy: true, strays: [], passport: {},
           manager: systemd, definition: 5feceb66, half_done: false, log: "", way_in: {},
           gpus_seen: null}
containers:
  description:
    - Every container of the host - C(name), C(ports) that it has on the host, and C(endpoint) and
      C(root) by the labels of one of ours. Empty where no Docker daemon answers.
  returned: always
  type: list
  elements: dict
  sample:
    - {name: firstlight-chat-5feceb66, endpoint: chat, root: /var/lib/firstlight, ports: [8000]}
network:
  description: Whether the role C(network_access) has set something on this host.
  returned: always
  type: bool
canaries:
  description: Keys of the canaries that were proven on this host.
  returned: always
  type: list
  elements: str
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
haproxy:
  description: The version of the distribution's HAProxy, or C(null) where there is none.
  returned: always
  type: str
openssl:
  description: Whether the distribution's openssl is there, which makes self-signed certificates.
  returned: always
  type: bool
missing_libraries:
  description: Those of C(libraries) that the loader does not find.
  returned: always
  type: list
  elements: str
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import re

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import (
    docker_service,
    network_files,
    passport,
    paths,
    placement,
    processes,
    python_venv,
    services,
)
from ansible.module_utils.firstlight.docker_api import Api, Away, Refused
from ansible.module_utils.firstlight.docker_service import Docker
from ansible.module_utils.firstlight.http_client import get
from ansible.module_utils.firstlight.planning import way_in
from ansible.module_utils.firstlight.runner import run
from ansible.module_utils.firstlight.way_in import WayIn

# What lies directly under a root of ours; the last is a file system's own.
OURS = {*paths.FOLDERS, "lost+found"}
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# The journal of a switch that was ended in the middle.
HALF_DONE = re.compile(r"endpoint-([a-z0-9][a-z0-9-]*)\.json")


# Seconds for a daemon to answer: whether one is there is a part of what is asked.
DOCKER_S = 5


def observe(root, ports, libraries):
    """The whole answer, as one dict."""
    kind = services.kind_for_this_host()
    managers = [services.manager(kind, root)]
    containers = _containers()
    if containers is not None:
        managers.append(Docker(root, Api(timeout_s=DOCKER_S), patience_s=0))
    running = processes.engines(root)
    half_done = [match.group(1) for match in map(
        HALF_DONE.fullmatch, _listed(os.path.join(root, "journal"))) if match]
    on_disk = [name for name in _listed(os.path.join(root, "endpoints")) if NAME.fullmatch(name)]
    labelled = [one["endpoint"] for one in containers or [] if one["root"] == root
                and NAME.fullmatch(one["endpoint"] or "")]
    endpoints = {
        name: dict(_endpoint(root, name, managers, running.get(name, [])),
                   half_done=name in half_done)
        for name in sorted({*on_disk, *half_done, *running, *labelled})
    }
    return {
        "root": root,
        "strangers": sorted(set(_listed(root)) - OURS),
        "environments": [name for name in sorted(_listed(os.path.join(root, "venvs")))
                         if python_venv.is_ours(os.path.join(root, "venvs", name))],
        "caches": sorted(_listed(os.path.join(root, "cache"))),
        "canaries": sorted(name[: -len(".json")] for name in _listed(
            os.path.join(root, "canaries")) if name.endswith(".json")),
        "network": os.path.exists(os.path.join(root, "network", network_files.STATE)),
        "containers": containers or [],
        "manager": kind,
        "uid": os.geteuid(),
        "endpoints": endpoints,
        "ports": _holders(ports, containers or []),
        "python": {
            "version": platform.python_version(),
            "venv": importlib.util.find_spec("ensurepip") is not None,
        },
        "haproxy": _haproxy(),
        "openssl": os.access(way_in.OPENSSL, os.X_OK),
        "missing_libraries": [name for name in libraries if not _loads(name)],
    }


def _containers():
    """Every container of the host, or None where no daemon answers."""
    if not docker_service.has_docker():
        return None
    try:
        found = Api(timeout_s=DOCKER_S).containers([]) or []
        return sorted(({
            "ports": sorted({port["PublicPort"] for port in one.get("Ports") or []
                             if port.get("PublicPort")}),
            "name": one["Names"][0].lstrip("/"),
            "endpoint": (one.get("Labels") or {}).get(docker_service.ENDPOINT),
            "root": (one.get("Labels") or {}).get(docker_service.ROOT),
        } for one in found if one.get("Names")), key=lambda one: one["name"])
    except (Away, Refused):
        return None


def _holders(ports, containers):
    """Who holds ports. Of a container's it is a process of the daemon's, so its labels tell."""
    found = {str(port): who for port, who in processes.holders(ports).items()}
    for one in containers:
        for port in one["ports"]:
            if str(port) in found and NAME.fullmatch(one["endpoint"] or ""):
                found[str(port)].update(endpoint=one["endpoint"], root=one["root"])
    return found


def _endpoint(root, name, managers, running):
    found = passport.read(root, name)
    manager = next((one for one in managers if os.path.exists(one.files(name)[0])), managers[0])
    status, restarts = manager.status(name), manager.restarts(name)
    native = [one["plan"] for one in running if one["pid"] == status["pid"]]
    plan = status.get("plan") or (native[0] if native else None)
    pids = [one["pid"] for one in running]
    if manager.KIND == Docker.KIND:
        pids += manager.pids(name)
    url = found["plan"]["url"] if found else None
    definition = paths.read(manager.files(name)[0])
    return {
        "name": name,
        "state": status["state"],
        "detail": status["detail"],
        "older": passport.older(root, name),
        "restarts": restarts,
        "pid": status["pid"],
        "plan": plan,
        "healthy": bool(url and plan and get(url + "/health", timeout_s=5).status == 200),
        "pids": sorted(pids),
        "strays": [] if native else [one["pid"] for one in running],
        "passport": found,
        "manager": manager.KIND if definition is not None else None,
        "definition": None if definition is None else hashlib.sha256(definition).hexdigest(),
        "log": manager.log_tail(name) if status["state"] == "failed" or restarts else "",
        "way_in": WayIn(managers[0].KIND, root, name).digests(),
        "gpus_seen": _gpus_seen(manager, name, found, plan),
    }


def _gpus_seen(manager, name, found, plan):
    """A container may have lost its GPUs since it was started."""
    if manager.KIND != Docker.KIND or not found or not plan or not found["plan"]["gpus"]:
        return None
    return placement.look(found["plan"], [], manager.wanted(name))["gpus"]


def _listed(folder):
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _haproxy():
    """The version of the HAProxy that ways in run, or None."""
    if not os.access(way_in.PROGRAM, os.X_OK):
        return None
    found = re.search(r"version (\d+(\.\d+)+)", run([way_in.PROGRAM, "-v"]).stdout)
    return found.group(1) if found else None


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
