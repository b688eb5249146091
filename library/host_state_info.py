#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ansible module: all that decides whether there is anything to do on a host, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_state_info
short_description: Read all that decides whether there is anything to do on a host
description:
  - Reads in one call what C(endpoint_info), C(model_info) and C(gpu_facts) read, what
    C(linker_cache) finds in check mode, what environments lack, and which changes were left half
    done.
  - What one of them cannot read is C(null) with the reason in RV(unread), and keeps no other from
    being read. What serves, the models and the facts must be readable; it fails with the reasons of
    all that is not.
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
  paths:
    description: Models, by their paths.
    type: list
    elements: str
    default: []
  allow_code:
    description: Those of O(paths) that may bring code which an engine runs.
    type: list
    elements: str
    default: []
  allow_pickle:
    description: Those of O(paths) whose weights may be pickles.
    type: list
    elements: str
    default: []
  tokenizer_classes:
    description: Rows of C(catalog/tokenizer_classes.yml); needed where there are O(paths).
    type: list
    elements: dict
    default: []
  model_types:
    description: Rows of C(catalog/model_types.yml); needed where there are O(paths).
    type: list
    elements: dict
    default: []
  checks:
    description: Rows of C(catalog/library_checks.yml).
    type: list
    elements: dict
    required: true
  places:
    description: Rows of C(catalog/library_places.yml).
    type: list
    elements: dict
    default: []
  tritons:
    description: Rows of C(catalog/triton_releases.yml).
    type: list
    elements: dict
    default: []
  pythons:
    description: Pythons of this host that run engines.
    type: list
    elements: path
    default: []
  jetson_releases:
    description: Rows of C(catalog/jetson_releases.yml).
    type: list
    elements: dict
    default: []
  jetson_chips:
    description: Rows of C(catalog/jetson_chips.yml).
    type: list
    elements: dict
    default: []
  environments:
    description: Locks of virtual environments, by the name of each under C(venvs).
    type: dict
    default: {}
  docker_needs:
    description: Settings that Docker's daemon needs, as C(docker_daemon) takes them.
    type: dict
    default: {}
  docker_defaults:
    description: Settings of the daemon for what nobody says anything of.
    type: dict
    default: {}
  docker_consent:
    description: Whether containers that run may be started again.
    type: bool
    default: false
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
- name: Look at the host
  host_state_info:
    ports: [8000]
    checks: "{{ lookup('catalog', 'library_checks') }}"
    places: "{{ lookup('catalog', 'library_places') }}"
    tritons: "{{ lookup('catalog', 'triton_releases') }}"
    environments:
      toolbelt: "{{ lookup('ansible.builtin.file', 'toolbelt.txt') }}"
  register: __state
"""

RETURN = r"""
endpoints:
  description: What serves, as C(endpoint_info) returns it.
  returned: always
  type: dict
models:
  description: The models and what is wrong with them, as C(model_info) returns it.
  returned: always
  type: dict
library_path:
  description:
    - What is wrong with the library path and what would mend it, as C(linker_cache) returns it in
      check mode; C(null) where it cannot be told.
  returned: always
  type: dict
environments:
  description:
    - The steps that would bring each of O(environments); none where it is as wanted. C(null) where
      it cannot be told.
  returned: always
  type: dict
  sample: {toolbelt: [create, install, place, mark]}
containers:
  description:
    - What there is for containers, as C(docker_daemon) returns it in check mode, with the images of
      all endpoints, and in C(lost) what C(gpu_containers) finds wrong with the GPUs inside.
    - C(null) where no endpoint was ever in a container, or where it cannot be told.
  returned: always
  type: dict
half_done:
  description:
    - Names of changes that are under way, or were ended in the middle; C(null) where it cannot be
      told.
  returned: always
  type: list
  elements: str
  sample: [endpoint-chat, linker_cache]
unread:
  description: Why something is C(null), by its key.
  returned: always
  type: dict
  sample: {library_path: "/etc/ld.so.conf.d: Permission denied"}
ansible_facts:
  description: C(gpu_host), as C(gpu_facts) gathers it.
  returned: always
  type: dict
elapsed_s:
  description: Seconds that all of it took.
  returned: always
  type: float
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.firstlight import (
    host_endpoints,
    library_path,
    library_steps,
    paths,
    python_venv,
    services,
    transaction,
)
from ansible.module_utils.firstlight.host import facts
from ansible.module_utils.firstlight.host.reading import Reader

SYSTEM_ROOT = "/"
NEEDED = ("endpoints", "models", "gpu_host")
"""What no role can do without."""
NAMES = {"type": "list", "elements": "str", "default": []}
SPEC = {
    **host_endpoints.SPEC,
    "paths": NAMES, "allow_code": NAMES, "allow_pickle": NAMES,
    "tokenizer_classes": library_path.ROWS, "model_types": library_path.ROWS,
    **library_path.SPEC,
    **facts.SPEC,
    "environments": {"type": "dict", "default": {}},
    "docker_needs": {"type": "dict", "default": {}},
    "docker_defaults": {"type": "dict", "default": {}},
    "docker_consent": {"type": "bool", "default": False},
}


def observe(params, system_root):
    """Everything as one dict, and the facts; ``None`` with its reason in ``unread`` is unknown."""
    root, unread = paths.root(params["root"]), {}

    def read(key, look, *given):
        try:
            return look(*given)
        except OSError as problem:
            unread[key] = _why(problem, root)
            return None

    found = {
        "endpoints": read("endpoints", host_endpoints.observe, root, params["ports"],
                          params["libraries"]),
        "models": read("models", _models, params),
        "library_path": read("library_path", library_steps.told, params, system_root),
        "environments": read("environments", _environments, root, params["environments"]),
        "half_done": read("half_done", transaction.left, os.path.join(root, "journal")),
        "containers": None,
        "unread": unread,
    }
    catalog = {key: params[key] for key in facts.SPEC}
    gathered = read("gpu_host", lambda: facts.observe(root, system_root, catalog)[0])
    if not set(NEEDED) & set(unread):
        plans = [one["passport"]["plan"] for one in found["endpoints"]["endpoints"].values()
                 if one["passport"]]
        # Passports are files, which anybody may have written.
        images = {plan["image"] for plan in plans if plan.get("runtime") == "docker"
                  and isinstance(plan.get("image"), str)}
        if images:
            found["containers"] = read("containers", _containers, params, system_root, images,
                                       bool(gathered["devices"]), unread)
    return found, gathered


def _why(problem, root):
    return "%s: %s" % (problem.filename or root, problem.strerror or problem)


def _containers(params, system_root, images, inside, unread):
    # Most hosts have none, and it is much to load.
    from ansible.module_utils.firstlight import docker_api, docker_steps
    from ansible.module_utils.firstlight.host import gpu_containers
    from ansible.module_utils.firstlight.planning import container_runtime, reload_guard

    try:
        steps = docker_steps.observe(Reader(system_root), {
            "needs": params["docker_needs"], "defaults": params["docker_defaults"],
            "consent": params["docker_consent"],
            # By which of its names it is looked for, the role knows.
            "images": sorted({form(image) for image in images for form in (
                container_runtime.without_digest, container_runtime.without_tag)}),
        })
        # What is refused has no changes: it would look like a daemon that is as wanted.
        if steps.decided.refusals:
            raise docker_steps.NotChanged(steps.decided.refusals)
        found = docker_steps.told(steps)
        found["lost"] = reload_guard.lost(gpu_containers.read(
            docker_api.Api(timeout_s=gpu_containers.TIMEOUT_S), True)["containers"]) \
            if inside else []
        return found
    except (docker_api.Away, docker_api.Refused, docker_steps.NotChanged) as problem:
        unread["containers"] = str(problem)
    return None


def _models(params):
    if not params["paths"]:
        return {"models": {}, "findings": []}
    # Most hosts have none, and it is much to load.
    from ansible.module_utils.firstlight import model_asked

    models, findings = model_asked.observe(params)
    return {"models": models, "findings": findings}


def _environments(root, locks):
    return {name: _steps(os.path.join(root, "venvs", name), lock) for name, lock in locks.items()}


def _steps(path, lock):
    return python_venv.plan(
        python_venv.wanted(lock, {}), python_venv.observe(path), os.path.lexists(path))


def main():
    """Read; nothing is ever changed."""
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    started = time.monotonic()
    try:
        found, gathered = observe(module.params, SYSTEM_ROOT)
    except services.ServiceError as problem:
        module.fail_json(msg="The service manager cannot be read: %s" % problem)
    missing = [found["unread"][key] for key in NEEDED if key in found["unread"]]
    if missing:
        module.fail_json(msg="\n".join(missing), unread=found["unread"])
    module.exit_json(
        changed=False, ansible_facts={"gpu_host": gathered},
        elapsed_s=round(time.monotonic() - started, 4), **found)


if __name__ == "__main__":
    main()
